# Searches the files that root in the box can read for boxd's token. NEKOT has the token
# reversed, because this script's own environment is searched too.
import glob

token = os.environ["NEKOT"][::-1].encode()
with open("/tmp/control", "wb") as control:
    control.write(b"the control: " + token)
for path in glob.glob("/proc/[0-9]*/*") + glob.glob("/proc/[0-9]*/fd/*") + glob.glob(
        "/proc/[0-9]*/task/*/environ") + glob.glob("/.agentbox/**", recursive=True) + glob.glob(
        "/run/**", recursive=True) + glob.glob("/tmp/**", recursive=True):
    try:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                found = token in file.read(8 << 20)
            if found:
                print(f"{path}: ALLOWED")
    except OSError:
        pass
print("done", flush=True)
