"""The folder of a local cluster: where it lies, where it may lie, and the commands that advise on it."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from itertools import count
from pathlib import Path

from data_shards import durable
from data_shards.errors import InputError, command

LONGEST_SOCKET = 107  # characters of a socket's path


def default_root() -> Path:
    """One cluster a user: a short path, for a socket's has 107 characters at most."""
    return Path(tempfile.gettempdir()) / f"retinaforge-slurm-{os.getuid()}"


def slurm_local(verb: str, root: Path) -> str:
    """`retinaforge slurm-local VERB` on the cluster of this folder, as a shell reads it."""
    return command("retinaforge", "slurm-local", verb, *([] if root == default_root() else ["--root", root]))


def elsewhere() -> str:
    """The command that starts a cluster in a folder that is free: in /tmp, for paths of sockets are short, and TMPDIR may not be."""
    return slurm_local("start", next(free for n in count(2) if not os.path.lexists(free := Path(f"/tmp/{default_root().name}-{n}"))))


def make_root(root: Path, nodes: int) -> None:
    """Make the folder of a cluster of so many nodes, which everybody may pass.

    Raises:
        InputError: another's folder, one with something in it, or one where SLURM would not start; then nothing is made.
    """
    if os.path.lexists(root):
        check_own(root)
        if any(root.iterdir()):
            raise InputError(
                "the folder of a cluster is not empty", where=root, expected="none, or an empty one", mend=f"another one: {elsewhere()}"
            )
    _check_path(root, nodes)
    for folder in filter(Path.exists, root.absolute().parents):
        _check_reach(folder, root)
    with durable.explained(root):
        for folder in reversed([root, *root.parents]):
            if not folder.exists():
                folder.mkdir()
                folder.chmod(0o755)  # whatever the umask is


def check_own(root: Path) -> None:
    """Refuse a folder into which another user could put, or has put, a key, a configuration, or numbers of processes to be ended.

    Raises:
        InputError: a link, no folder, or another user's.
    """
    about = root.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        kind = "a link" if stat.S_ISLNK(about.st_mode) else "no folder" if not stat.S_ISDIR(about.st_mode) else "another user's"
        raise InputError(
            f"the folder of the cluster is {kind}", where=root, expected="a folder of your own", mend=f"another one: {elsewhere()}"
        )


def _check_reach(folder: Path, root: Path) -> None:
    """Refuse a parent folder that not everybody may pass, or where another could swap the cluster's.

    Raises:
        InputError: as said.
    """
    mode = folder.stat().st_mode
    if mode & 0o111 != 0o111:
        raise InputError(
            f"not every user may pass the folder {folder} (mode {stat.S_IMODE(mode):o}), as munged wants it",
            where=root,
            expected="folders that everybody may pass, if not read",
            mend=f"{command('chmod', f'{stat.S_IMODE(mode) | 0o111:o}', folder)}, or another one: {elsewhere()}",
        )
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise InputError(
            f"others may write to the folder {folder} (mode {stat.S_IMODE(mode):o}), where munged then makes no socket",
            where=root,
            expected="folders that only their owners may write to",
            mend=f"{command('chmod', f'{stat.S_IMODE(mode) & ~0o022:o}', folder)}, or another one: {elsewhere()}",
        )


def _check_path(root: Path, nodes: int) -> None:
    """Refuse a path that SLURM could not have.

    Raises:
        InputError: as said.
    """
    if not re.fullmatch(r"[A-Za-z0-9_./+-]+", str(root)):
        raise InputError(
            f"the path of the folder is {str(root)!r}",
            where=root,
            expected="letters, digits and _ . / + - : it stands in slurm.conf, which has no quotes",
            mend=f"another one: {elsewhere()}",
        )
    longest = LONGEST_SOCKET - len(f"/spool-n{nodes}/n{nodes}_100000.4294967291")
    if len(os.fsencode(root)) > longest:
        raise InputError(
            f"the path of the folder has {len(os.fsencode(root))} characters",
            where=root,
            expected=f"at most {longest}: sockets lie there",
            mend=f"another one: {elsewhere()}",
        )
