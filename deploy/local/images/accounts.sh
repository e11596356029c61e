# Builds an image for tests of accounts, as a docker-archive: one static program that prints the ids of
# its process and its arguments, the files of two accounts, a machine id and a random seed. The process of
# root has a group that no other account has.
#
#   bash accounts.sh NAME CONFIG OUT.tar
#
# CONFIG is the image's `config` object, as JSON. The tags below name images without a usable user file.
set -euo pipefail

name=$1
config=$2
out=$3
umask 022
work=$(mktemp -d "${TMPDIR:-/tmp}/agentbox-image.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT

case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) echo "no image recipe for $(uname -m)" >&2; exit 1 ;;
esac

root=$work/root
mkdir -p "$root/etc"
printf 'root:x:0:0::/:/ids\nalice:x:1000:1000::/:/ids\n' > "$root/etc/passwd"
printf 'root:x:0:\ndisk:x:6:root\nstaff:x:50:alice\nalice:x:1000:\n' > "$root/etc/group"
# What no two boxes may share.
mkdir -p "$root/var/lib/systemd"
printf '0123456789abcdef0123456789abcdef\n' > "$root/etc/machine-id"
printf seed > "$root/var/lib/systemd/random-seed"
# Some tags name what is in the place of a user file.
case ${name##*:} in
  passwd-fifo) rm "$root/etc/passwd"; mkfifo "$root/etc/passwd" ;;
  passwd-device) rm "$root/etc/passwd"; mknod "$root/etc/passwd" c 1 5 ;;
  passwd-directory) rm "$root/etc/passwd"; mkdir "$root/etc/passwd" ;;
  passwd-loop) ln -sf passwd "$root/etc/passwd" ;;
  passwd-link) ln -sf /dev/zero "$root/etc/passwd" ;;
  passwd-large) truncate -s 2M "$root/etc/passwd" ;;
  group-device) rm "$root/etc/group"; mknod "$root/etc/group" c 1 5 ;;
esac
cat > "$work/ids.c" <<'END'
/* Prints the user, the group, in ascending order the primary and supplementary groups, and the
   arguments. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int compare(const void *a, const void *b) {
  gid_t left = *(const gid_t *)a, right = *(const gid_t *)b;
  return left < right ? -1 : left > right;
}

int main(int argc, char **argv) {
  gid_t groups[1025];
  int count = getgroups(1024, groups);
  if (count < 0) return 1;
  groups[count++] = getgid();
  qsort(groups, count, sizeof *groups, compare);
  printf("%d:%d", (int)getuid(), (int)getgid());
  for (int i = 0; i < count; i++)
    if (i == 0 || groups[i] != groups[i - 1]) printf(" %d", (int)groups[i]);
  for (int i = 1; i < argc; i++) printf(" %s", argv[i]);
  printf("\n");
  return 0;
}
END
gcc -static -Os -s -o "$root/ids" "$work/ids.c"
tar -C "$root" --numeric-owner --owner=0 --group=0 -cf "$work/layer.tar" .
diff_id=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$architecture" "$config" "$diff_id" > "$work/config.json"
digest=$(sha256sum "$work/config.json" | cut -d' ' -f1)
mv "$work/config.json" "$work/$digest.json"
printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$digest" "$name" > "$work/manifest.json"
tar -C "$work" -cf "$out" manifest.json "$digest.json" layer.tar
