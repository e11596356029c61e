# Opens descriptors in four processes until the kernel refuses them or each has 20,000, and then waits.
import os
import signal

PROCESSES = 4
full, report = os.pipe()
for _ in range(PROCESSES):
    if os.fork() == 0:
        try:
            for _ in range(20_000):
                os.open("/dev/null", os.O_RDONLY)
        except OSError:
            pass
        os.write(report, b".")
        signal.pause()
for _ in range(PROCESSES):
    os.read(full, 1)
print("full", flush=True)
signal.pause()
