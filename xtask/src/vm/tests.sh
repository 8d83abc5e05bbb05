#!/bin/busybox sh
# Runs the tests in the root of the tree of cgroups, and some of them once more as a service does that was given a cgroup of its
# own. Of those with whole daemons it runs what an agent promises of its cgroups, and of containers only what is about
# cgroups: engines are slow where processors are emulated.
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/shm /dev/pts
mount -t devpts none /dev/pts
mount -t cgroup2 none /sys/fs/cgroup
mkdir /disk && mke2fs /dev/nvme0n1 >/dev/null && mount -t ext2 /dev/nvme0n1 /disk
export PATH=/usr/bin:/usr/sbin:/bin HOME=/tmp TMPDIR=/tmp RUST_BACKTRACE=0 MUSTER_TEST_CGROUPS=2 MUSTER_TEST_DISK=/disk
export MUSTER_BIN_DIR=/bin MUSTER_SKIP_LOG=/tmp/skipped MUSTER_TEST_EMULATED=1
exec-tests --test-threads 1 limits:: disks:: survivors:: 2>&1
root=$?
ip link set lo up
it-tests --test-threads 1 adopted:: many:: clock:: an_agents_full_disk on_a_full_disk \
    a_memory_hog_in a_container_hears a_container_whose_docker_client_is_killed containers_outlive 2>&1
root=$((root + $?))
flood-tests 2>&1
root=$((root + $?))
echo '+memory +cpu +pids' > /sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/service
sh -c 'echo $$ > /sys/fs/cgroup/service/cgroup.procs
    exec exec-tests --test-threads 1 limits::a_memory_hog limits::nothing_is_left limits::who_starts 2>&1'
root=$((root + $?))
[ ! -e "$MUSTER_SKIP_LOG" ] || sed 's/^/skipped here: /' "$MUSTER_SKIP_LOG"
echo "tests ended with $((root))"
rmdir /sys/fs/cgroup/service
echo "cgroups left: [$(find /sys/fs/cgroup -name 'muster-*' -o -name agent -o -name service)]"
poweroff -f
