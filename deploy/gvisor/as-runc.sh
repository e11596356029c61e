#!/bin/sh
# runc's command line on gVisor's runsc, so that containerd's shim for runc drives it. For
# machines without CAP_SYS_RESOURCE, where gVisor's own shim cannot set its OOM score; it
# works on all others too. Whoever writes it to its place puts runsc's path below.
#
# * The shim waits until nobody holds the pipe that it gave to a command. `start` begins
#   processes that outlive it: they do not get it. For runsc these are also the container's
#   input and output, which the shim gives to `create`: they are taken from there.
# * The shim learns that a container ended by the end of its process, and a container in a
#   sandbox has no process on the machine. `create` leaves one behind that waits for the
#   container and ends as it did: as killed, if the whole sandbox ended.
# * To kill what has ended already is no failure for the shim, if it is told so.
# * runsc takes the first letters of an id for the id, so what is asked must be the id: the
#   last word of a command, but before the signal in `kill`.
# * runsc's control groups are left on: the sandbox runs in the box's.
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

# Where `create` of a container waits for its `start`: each opens its end.
started=$root/$id.started
# Which process that is: it holds the container's output.
waiting=$root/$id.waiting
tell() {
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
    tell
    exit "$code" ;;
  create)
    "$runsc" --platform=systrap "$@" || exit
    # The other type is the sandbox, whose process is the sandbox itself.
    grep -q '"io.kubernetes.cri.container-type": *"container"' "$bundle/config.json" || exit 0
    mkfifo "$started"
    (
      : < "$started"
      said=$("$runsc" --root "$root" wait "$id") || exit 137
      code=${said##*\"exitStatus\":}
      exit "${code%%[!0-9]*}"
    ) < /dev/null &
    printf %s "$!" > "$waiting"
    printf %s "$!" > "$pid_file" ;;
  kill)
    "$runsc" --platform=systrap "$@" && exit
    # In runc's words, which the shim knows: then it is no failure.
    "$runsc" --root "$root" state "$id" 2> /dev/null | grep -q '"status": "running"' && exit 1
    echo "container not running" >&2
    exit 1 ;;
  delete)
    tell
    rm -f "$waiting"
    exec "$runsc" --platform=systrap "$@" ;;
  *) exec "$runsc" --platform=systrap "$@" ;;
esac
