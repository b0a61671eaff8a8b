#!/bin/sh
# Unpack an archive with a Python, and remove the archive. The role runs this on the host.
#
# unpack_python.sh ARCHIVE SHA256 DIRECTORY RELEASES: DIRECTORY gets what is in the one directory of the archive, and its
# name after the Python in it has been seen to work. If anything fails, the last line on standard error says why. Other
# Pythons beside DIRECTORY go, except those that run releases, to which links in RELEASES point.
set -eu
archive=$1 expected=$2 python=$3 releases=$4
trap 'rm -rf "$archive" "$python.part"' EXIT

found=$(sha256sum "$archive")
found=${found%% *}
if [ "$found" != "$expected" ]; then
    echo "it has the SHA-256 $found, and the file that was checked had $expected" >&2
    exit 1
fi
rm -rf "$python" "$python.part"
mkdir -p "$python.part"
umask 022
# GNU tar writes nothing outside the directory: it refuses names with "..", and makes links last that lead elsewhere.
tar --extract --gzip --file "$archive" --directory "$python.part" --strip-components 1 --no-same-owner \
    --no-same-permissions
# Nobody but root may change a program that services run, whatever the archive says.
chmod -R a+rX,go-w,u-s,g-s "$python.part"
"$python.part/bin/python3" -I -c 'import compileall, sqlite3, ssl, zipfile'
mv -T "$python.part" "$python"
# With SELinux, systemd runs programs of this type only.
if command -v restorecon >/dev/null; then
    restorecon -R "$python"
fi
for other in "${python%/*}"/*; do
    if [ "$other" != "$python" ] && [ -z "$(find "$releases" -maxdepth 2 -name python -lname "$other/*")" ]; then
        rm -rf "$other"
    fi
done
