#!/bin/busybox sh
# The first program in the machine. No container can be made in the memory that a kernel unpacks its first files into
# (pivot_root): all goes into a file system, which is the root from then on.
/bin/busybox mount -t tmpfs -o size=90% none /new
for name in bin dev etc lib lib64 proc run sys tmp usr var; do
    [ ! -e /$name ] || /bin/busybox cp -a /$name /new/
done
exec /bin/busybox switch_root /new /bin/tests
