# Rewrites boxd's report of the main command's end until the box has ended, and exits with 7.
import json, time

TIME = "2026-01-01T00:00:00Z"
FORGED = {"exit_code": 0, "oom_killed": False, "started_at": TIME, "finished_at": TIME, "message": ""}
# Shorter than boxd's own report, and then blanks: valid wherever boxd cuts the file.
forged = json.dumps(FORGED, separators=(",", ":")).ljust(600).encode()

if os.fork() == 0:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for path in ("/.agentbox/output/termination.json", "/dev/termination-log"):
            try:
                file = os.open(path, os.O_WRONLY)
            except OSError:
                continue
            os.pwrite(file, forged, 0)
            os.close(file)
    os._exit(0)
time.sleep(0.5)
sys.exit(7)
