#!/bin/sh
# Makes a guest for QEMU that does nothing but use its disk, for docs/guest.rst:
#
#   sh build-guest.sh FOLDER      FOLDER/vmlinuz and FOLDER/initrd, about 30 MB
#
# It's Debian's kernel for virtual machines with Debian's busybox, for amd64. Both are downloaded
# and unpacked; nothing is installed, and no root is needed. What the guest runs stands below.
set -eu
folder=${1:?"the folder to put it in"}
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p')
[ -n "$kernel" ] || { echo "apt knows no linux-image-cloud-amd64; try apt-get update" >&2; exit 1; }
(cd "$work" && apt-get download -qq "$kernel" busybox-static 2>errors) || { cat "$work/errors" >&2; exit 1; }
for package in "$work"/*.deb; do dpkg-deb --extract "$package" "$work/system"; done

mkdir -p "$work/guest/bin" "$work/guest/dev" "$work/guest/proc" "$work/guest/modules"
cp "$(find "$work/system" -path '*bin/busybox')" "$work/guest/bin/busybox"
for module in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
    # A kernel may have some of them built in.
    find "$work/system" -name "$module.ko*" -exec cp {} "$work/guest/modules" \;
done

cat >"$work/guest/init" <<'INIT'
#!/bin/busybox sh
# Writes a block, reads it back past all caches, compares, and so on with the next block.
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
cd /modules
# Which of them needs which differs between kernels: what fails finds what it needs in another turn.
for turn in 1 2 3 4; do
    for file in *; do insmod "$file" 2>/dev/null; done
done
until [ -b /dev/vda ]; do sleep 1; done

centiseconds() { read -r now _ </proc/uptime; echo "${now%.*}${now#*.}"; }
number=0
slowest=0
while :; do
    number=$((number + 1))
    block=$((number % 1024))
    yes "write $number" | head -c 4096 >/sent
    before=$(centiseconds)
    dd if=/sent of=/dev/vda bs=4096 seek=$block count=1 oflag=direct conv=notrunc,fsync 2>/said \
        || echo "guest: ERROR: write $number: $(cat /said)"
    dd if=/dev/vda of=/got bs=4096 skip=$block count=1 iflag=direct 2>/said \
        || echo "guest: ERROR: read $number: $(cat /said)"
    took=$(($(centiseconds) - before))
    cmp -s /sent /got || echo "guest: ERROR: write $number is not what was read back"
    [ $took -le $slowest ] || slowest=$took
    [ $((number % 20)) -ne 0 ] \
        || echo "guest: $number writes, each was read back; the slowest took ${slowest}0 ms"
done
INIT
chmod +x "$work/guest/init"
(cd "$work/guest" && ln -s busybox bin/sh && find . | bin/busybox cpio -o -H newc 2>/dev/null | gzip) >"$folder/initrd"
cp "$work"/system/boot/vmlinuz-* "$folder/vmlinuz"
