"""Stand-ins for the packages that the guide installs, so that no test downloads one.

packages.py    run in a box: makes an index of them, and the box's pip uses it

Tests pass the program as an argument of `python -c`.
"""
import pathlib
import socket
import subprocess
import sys
import time
import zipfile

VERSION = "2.0.0"
# The source of each package besides its version.
PACKAGES = {
    "requests": "",
    "numpy": """
class array(list):
    def mean(self):
        return sum(self) / len(self)
""",
}
PORT = 8471
DEADLINE_S = 30


def write_index(directory):
    """Makes a directory with one wheel for each package, as the simple repository API lists them."""
    for name, source in PACKAGES.items():
        information = f"{name}-{VERSION}.dist-info"
        files = {
            f"{name}.py": f'__version__ = "{VERSION}"\n{source}',
            f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n",
            f"{information}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = f"{information}/RECORD"
        files[record] = "".join(f"{path},,\n" for path in [*files, record])
        package = pathlib.Path(directory, name)
        package.mkdir(parents=True)
        with zipfile.ZipFile(package / f"{name}-{VERSION}-py3-none-any.whl", "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)


def serve(directory):
    """Starts a server of the index that outlives this program, and waits until it listens."""
    subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", directory, str(PORT)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", PORT), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def use_index():
    """Makes the index, and configures it for every user of pip."""
    write_index("/tmp/index")
    serve("/tmp/index")
    pathlib.Path("/etc/pip.conf").write_text(f"[global]\nindex-url = http://127.0.0.1:{PORT}/\n")


if __name__ == "__main__":
    use_index()
