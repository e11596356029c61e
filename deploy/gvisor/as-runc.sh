#!/bin/sh
# Runs gVisor's runsc with the command line of runc, so that containerd's shim for runc can use it.
# It is needed on machines without CAP_SYS_RESOURCE, where gVisor's own shim cannot set its OOM score,
# and works on all other machines. The placeholder below is replaced by runsc's path.
#
# * The shim waits until every process has closed the pipe that it gave to a command. `start` starts
#   processes that outlive the command, so they must not inherit the pipe. runsc uses the streams of
#   `start` as the container's output, while the shim gives the container's streams to `create`. So
#   `start` opens the streams of the process that `create` left.
# * The shim detects the end of a container by the end of its process. A container in a gVisor sandbox
#   has no process on the machine, so `create` leaves a process that waits for the container and exits
#   with its code: with 137 if the whole sandbox ended.
# * The shim accepts a failed `kill` of an ended container only with runc's message for it.
# * runsc also accepts a prefix of a container's id, so the id below must be exact: it is the last
#   argument of a command, and in `kill` the one before the signal.
# * runsc's control groups stay enabled: the sandbox runs in the box's control group.
set -u
runsc=@RUNSC@

command='' root='' bundle='' pid_file='' previous='' last=''
for argument; do
  case $last in
    --root) root=$argument ;;
    --bundle) bundle=$argument ;;
    --pid-file) pid_file=$argument ;;
    *)
      case $command$argument in
        create | delete | events | exec | kill | pause | ps | resume | start | state | update)
          command=$argument ;;
      esac ;;
  esac
  previous=$last last=$argument
done
id=$last
[ "$command" != kill ] || id=$previous

# The pipe by which `start` releases the process of `create`: each opens one end.
started=$root/$id.started
# The pid of that process, which holds the container's output.
waiting=$root/$id.waiting
release() {
  [ -p "$started" ] || return 0
  timeout 10 sh -c ': > "$0"' "$started"
  rm -f "$started"
}

case $command in
  start)
    streams=/dev/null errors=/dev/null
    if waiter=$(cat "$waiting" 2> /dev/null) && [ -e "/proc/$waiter/fd/1" ]; then
      streams=/proc/$waiter/fd/1 errors=/proc/$waiter/fd/2
    fi
    "$runsc" --platform=systrap "$@" > "$streams" 2> "$errors"
    code=$?
    release
    exit "$code" ;;
  create)
    "$runsc" --platform=systrap "$@" || exit
    # The other type is `sandbox`, which has a process of its own.
    grep -q '"io.kubernetes.cri.container-type": *"container"' "$bundle/config.json" || exit 0
    mkfifo "$started"
    (
      : < "$started"
      result=$("$runsc" --root "$root" wait "$id") || exit 137
      code=${result##*\"exitStatus\":}
      exit "${code%%[!0-9]*}"
    ) < /dev/null &
    printf %s "$!" > "$waiting"
    printf %s "$!" > "$pid_file" ;;
  kill)
    "$runsc" --platform=systrap "$@" && exit
    # runc's message for an ended container, which the shim recognises.
    "$runsc" --root "$root" state "$id" 2> /dev/null | grep -q '"status": "running"' && exit 1
    echo "container not running" >&2
    exit 1 ;;
  delete)
    release
    rm -f "$waiting"
    exec "$runsc" --platform=systrap "$@" ;;
  *) exec "$runsc" --platform=systrap "$@" ;;
esac
