# Runs a setuid program of root as another user of the box.
import shutil

shutil.copy("/bin/cat", "/setuid-cat")
os.chmod("/setuid-cat", 0o4755)
os.setgroups([])
os.setgid(1000)
os.setuid(1000)
os.execv("/setuid-cat", ["cat", "/proc/self/status"])
