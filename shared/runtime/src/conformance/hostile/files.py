# Reads and changes boxd's files as another user of the box.
OUTPUT = "/.agentbox/output"


def as_user(action):
    def run():
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)
        action()
    return in_child(run)


def create():
    os.close(os.open(f"{OUTPUT}/termination.json", os.O_CREAT | os.O_WRONLY))


attempt("list the output", as_user(lambda: os.listdir(OUTPUT)))
attempt("write the report", as_user(create))
attempt("remove the output", as_user(lambda: os.unlink(f"{OUTPUT}/output-0")))
attempt("replace the report", as_user(lambda: os.rename("/tmp/none", f"{OUTPUT}/termination.json")))
attempt("write the termination log", as_user(write("/dev/termination-log")))
print("done", flush=True)
