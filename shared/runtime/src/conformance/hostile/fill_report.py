# Fills boxd's report of the main command's end, which may be a file of the node's disk, and waits until
# it is small again. Exits with 7 then.
import time

PATHS = ("/.agentbox/output/termination.json", "/dev/termination-log")
SMALL = 64 * 1024


def allocated(path):
    stat = os.stat(path)
    return max(stat.st_size, stat.st_blocks * 512)


filled = []
for path in PATHS:
    try:
        file = os.open(path, os.O_WRONLY)
    except OSError:
        continue
    for _ in range(4):
        os.write(file, bytes(1 << 20))
    os.close(file)
    filled.append(path)
end = time.monotonic() + 30
while any(allocated(path) > SMALL for path in filled):
    if time.monotonic() > end:
        sys.exit(5)
    time.sleep(0.1)
sys.exit(7 if filled else 6)
