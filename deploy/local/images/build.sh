# Builds one container image without a container daemon, as a docker-archive.
#
#   bash build.sh python|busybox|pause|postgres|program|services OUT.tar
#
# `agentbox-local` runs it as root, because the images contain device nodes and file owners.
# python, busybox and postgres are built from Debian packages, for machines without access to a
# registry; python and busybox have the names of the official images that they replace. `program`
# contains one static program that exists already, and `services` contains the services.
set -euo pipefail

image=$1
out=$2
export PATH="$PATH:/usr/sbin:/sbin"
umask 022
work=$(mktemp -d "${TMPDIR:-/tmp}/agentbox-image.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
# The programs that run in the images' directories must not use TMPDIR.
unset TMPDIR

case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) echo "no image recipe for $(uname -m)" >&2; exit 1 ;;
esac

# Writes the archive from $work/layer.tar. $1 is the image's full name, $2 its `config` object.
archive() {
  local name=$1 config=$2 diff_id digest
  diff_id=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
  printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created_by":"agentbox-local, from Debian packages"}]}' \
    "$architecture" "$config" "$diff_id" > "$work/config.json"
  digest=$(sha256sum "$work/config.json" | cut -d' ' -f1)
  mv "$work/config.json" "$work/$digest.json"
  printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' \
    "$digest" "$name" > "$work/manifest.json"
  tar -C "$work" -cf "$out.partial" manifest.json "$digest.json" layer.tar
  mv "$out.partial" "$out"
}

pack_root() {
  tar -C "$work/root" --numeric-owner --owner=0 --group=0 -cf "$work/layer.tar" .
}

build_pause() {
  mkdir -p "$work/root"
  gcc -static -Os -s -o "$work/root/pause" "$PAUSE_SOURCE"
  pack_root
  archive agentbox.local/pause:1 '{"Entrypoint":["/pause"],"Env":["PATH=/"]}'
}

# The image $IMAGE with the static program $PROGRAM only.
build_program() {
  local name=${PROGRAM##*/}
  mkdir -p "$work/root"
  install -m 0755 "$PROGRAM" "$work/root/$name"
  pack_root
  archive "$IMAGE" '{"Entrypoint":["/'"$name"'"],"Env":["PATH=/"]}'
}

# The image $IMAGE with the services and the canary of the directory $PROGRAMS and the libraries that they
# are linked with. It has no shell and no package manager. A container's command selects one service.
build_services() {
  local root=$work/root service file
  mkdir -p "$root"/{etc/ssl/certs,tmp,usr/bin}
  chmod 1777 "$root/tmp"
  for service in api-gateway auth scheduler exec-proxy webhooks provisioner loadtest; do
    install -m 0755 "$PROGRAMS/agentbox-$service" "$root/usr/bin/"
    strip --strip-debug "$root/usr/bin/agentbox-$service"
    for file in $(ldd "$PROGRAMS/agentbox-$service" | grep -o '/[^ ]*'); do
      (cd / && cp -L --no-preserve=ownership --parents "${file#/}" "$root")
    done
  done
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
  printf 'root:x:0:0::/:/\nagentbox:x:65532:65532::/:/\n' > "$root/etc/passwd"
  printf 'root:x:0:\nagentbox:x:65532:\n' > "$root/etc/group"
  for service in api-gateway auth scheduler exec-proxy webhooks provisioner loadtest; do
    chroot "$root" "/usr/bin/agentbox-$service" --version > /dev/null
  done
  pack_root
  archive "$IMAGE" '{"Env":["PATH=/usr/bin"],"User":"65532:65532"}'
}

# As in the official image, the user `postgres` has the uid 999, and SIGINT is the stop signal.
build_postgres() {
  local root=$work/root
  mmdebstrap --quiet --variant=minbase --mode=root --include=postgresql-15 \
    --aptopt='APT::Install-Recommends "false"' \
    --essential-hook='mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$root"
  chroot "$root" groupmod -g 999 postgres
  chroot "$root" usermod -u 999 -g 999 postgres
  rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/*.log \
    "$root"/var/log/apt "$root/etc/resolv.conf" "$root/etc/hostname"
  find "$root/dev" -mindepth 1 -delete
  tar -C "$root" --numeric-owner -cf "$work/layer.tar" .
  archive agentbox.local/postgres:15 \
    '{"Env":["PATH=/usr/local/bin:/usr/bin:/bin:/usr/lib/postgresql/15/bin","LANG=C.UTF-8"],"StopSignal":"SIGINT"}'
}

build_busybox() {
  local root=$work/root package=$work/package applet file loader
  # The dynamic busybox with the libraries that it is linked with. A static glibc loads the libraries
  # for name resolution at run time, and crashes with those of another version.
  mmdebstrap --quiet --variant=extract --mode=root --include=busybox bookworm "$package"
  mkdir -p "$root"/{bin,dev,etc,home,proc,root,sys,tmp,usr/bin,usr/sbin,var/spool/mail,var/www}
  chmod 1777 "$root/tmp"
  chmod 700 "$root/root"
  cp "$package/bin/busybox" "$root/bin/busybox"
  loader=$(cd "$package" && echo lib*/ld-linux-*.so.*)
  for file in $(chroot "$package" "/$loader" --list /bin/busybox | grep -o '/[^ ]*'); do
    (cd "$package" && cp -L --parents ".$file" "$root")
  done
  for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  ln -s ../../bin/env "$root/usr/bin/env"
  cat > "$root/etc/passwd" <<'EOF'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
EOF
  cat > "$root/etc/group" <<'EOF'
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
utmp:x:43:
www-data:x:33:
users:x:100:
nobody:x:65534:
EOF
  printf 'root:*::0:::::\n' > "$root/etc/shadow"
  chmod 640 "$root/etc/shadow"
  printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
  check_busybox "$root"
  pack_root
  archive docker.io/library/busybox:latest \
    '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]}'
}

# Checks that busybox resolves names with the files of the image only.
check_busybox() {
  local root=$1
  printf '127.0.0.1 check\n' > "$root/etc/hosts"
  unshare --net --pid --fork --kill-child chroot "$root" sh -euc '
    ip link set lo up
    echo found > /tmp/page
    httpd -h /tmp
    [ "$(wget -qO- http://check/page)" = found ]'
  rm "$root/etc/hosts" "$root/tmp/page"
}

build_python() {
  local root=$work/root version
  mmdebstrap --quiet --variant=minbase --mode=root \
    --include=python3,python3-pip,python3-venv,ca-certificates \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$root"
  # As in the official image, `python` and `pip` are first on PATH, and pip installs packages as root
  # without a flag.
  ln -s /usr/bin/python3 "$root/usr/local/bin/python"
  ln -s /usr/bin/python3 "$root/usr/local/bin/python3"
  ln -s /usr/bin/pip "$root/usr/local/bin/pip"
  ln -s /usr/bin/pip3 "$root/usr/local/bin/pip3"
  rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
  # Boxes trust the CA certificates of this machine, for example those of a company's proxy.
  if compgen -G '/usr/local/share/ca-certificates/*.crt' > /dev/null; then
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates > /dev/null 2>&1
  fi
  chroot "$root" python3 -c 'import ssl, ctypes, sqlite3, venv, pip'
  version=$(chroot "$root" python3 -c 'import platform; print(platform.python_version())')
  rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/*.log \
    "$root"/var/log/apt "$root/etc/resolv.conf" "$root/etc/hostname"
  find "$root/dev" -mindepth 1 -delete
  tar -C "$root" --numeric-owner -cf "$work/layer.tar" .
  archive docker.io/library/python:3.11-slim \
    '{"Env":["PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin","LANG=C.UTF-8","PYTHON_VERSION='"$version"'"],"Cmd":["python3"]}'
}

case $image in
  python | busybox | pause | postgres | program | services) "build_$image" ;;
  *) echo "no recipe for image $image" >&2; exit 1 ;;
esac
