"""Which trees may ever be handed to the hands. Checked where a root is written and again where it is opened."""

from __future__ import annotations

_HOST_FOLDERS = """
/ /bin /boot /dev /etc /home /lib /lib32 /lib64 /libx32 /media /mnt /opt /proc /root /run /sbin /snap /srv /sys /tmp
/usr /var /var/backups /var/cache /var/lib /var/log /var/run /var/spool /var/tmp /data
"""
NEVER_ROOTS = frozenset(_HOST_FOLDERS.split())
NEVER_UNDER = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/dpkg",
)


def unsafe_root(path: str) -> str:
    """Why a tree may not be handed to the hands, or nothing.

    A root has at least two components, is none of the host's own folders and lies under none of the system's.
    """
    if path in NEVER_ROOTS:
        return f'cannot use "{path}" as a root: it holds more than caches; name the folder below it'
    under = next((folder for folder in NEVER_UNDER if path.startswith(folder + "/")), "")
    if under:
        return f'cannot use "{path}" as a root: nothing under {under} is ever changed'
    if not path.startswith("/") or path.count("/") < 2:
        return f'cannot use "{path}" as a root: a root is absolute and has at least two components'
    return ""
