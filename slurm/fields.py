"""The fields of a job, one by one: what SLURM reads in each, and what is refused since SLURM or a shell would take it otherwise."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from data_shards.errors import InputError, without_credentials
from slurm.queue import COMMENT_BYTES, TOKEN_MARK

JOBS = Path("runs/jobs")
"""Where job folders lie unless --jobs says otherwise; that of a job is JOBS/NAME."""

SECRET = re.compile(
    r"(TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|PRIVATE|CREDENTIALS?|CONNECTION_STRING|SSHPASS|_PWD|(^|_)PASS"
    r"|(API|ACCESS|SECRET|PRIVATE|STORAGE|ACCOUNT|SHARED|ENCRYPTION|SIGNING|LICENSE|AUTH)_?KEYS?)\d*(_|$)"
)
"""In the names of secrets, whole words of them: TOKENIZERS_PARALLELISM and MAX_TOKENS are none."""
ABOUT = re.compile(
    "_(FILE|FILES|PATH|DIR|FOLDER|HOME|NAME|TYPE|MODE|LIMIT|LENGTH|LEN|SIZE|COUNT|TTL|TIMEOUT|PARALLELISM|ENABLED|DISABLED|STDIN)$|^GOOGLE_APPLICATION_CREDENTIALS$"
)
"""What ends a name that speaks of a secret, or of where it lies, and holds none."""
AFTER = r"(singleton|(after|afterany|afterburstbuffer|aftercorr|afternotok|afterok|expand)(:\d+(_(\d+|\*))?(\+\d+)?)+)"
VARIABLE = re.compile(r"[A-Za-z_]\w*")
"""A name that a shell takes for a variable's."""
PATTERNS = {  # what SLURM itself reads; anything else in these fields is a mistake
    "memory": (r"0|[1-9]\d*[KMGTkmgt]?", "a number of MiB, or with K, M, G or T: 16G; 0 for all of a node's"),
    "partition": (r"[\w.,@+-]+", "partition names with commas between"),
    "account": (r"[\w.@+:/-]+", "letters, digits, . _ - @ + : /"),
    "qos": (r"[\w.@+:/-]+", "letters, digits, . _ - @ + : /"),
    "constraint": (r"[\w.,&|*()\[\]:=@+/-]+", "features joined by & or |"),
    "share": (r"(\d+|\{array_task\})/[1-9]\d*", "K/N, such as 3/16"),
    "umask": (r"0?[0-7]{1,3}", 'three octal digits, in quotes: "0022"'),
    "gpu_type": (r"[\w.-]+", "a type as sinfo shows it: a100"),
    "mail_user": (r"[\w.@+,-]+", "an address"),
    "mail_type": (r"[A-Za-z0-9_,]+", "such as END,FAIL"),
    "reservation": (r"[\w.,@+-]+", "letters, digits, . _ - @ + and commas between several"),
    "dependency": (f"{AFTER}([,?]{AFTER})*", "such as afterok:123, after:12+5 (minutes) or afterok:12:13_4"),
}
LOWEST = {
    **dict.fromkeys(("nodes", "tasks_per_node", "cpus_per_task", "max_stalls", "signal_seconds"), 1),
    **dict.fromkeys(("gpus_per_task", "gpus_per_node", "max_restarts"), 0),
}
"""The least that a number may be."""
# options of sbatch that a job sets, that would undo what it sets, or by which sbatch would send it elsewhere or answer otherwise
OURS = {
    *("job-name", "chdir", "workdir", "nodes", "ntasks", "ntasks-per-node", "tasks-per-node", "cpus-per-task", "gpus-per-node"),
    *("gpus-per-task", "gpus", "mem", "time", "partition", "account", "qos", "constraint", "array", "dependency", "reservation"),
    *("requeue", "no-requeue", "open-mode", "output", "error", "signal", "export", "export-file", "get-user-env", "wrap", "wait"),
    *("uid", "gid", "jobid", "external", "test-only", "clusters", "cluster-constraint", "parsable", "quiet", "help", "usage", "version"),
    "autocomplete",
}
OURS_OF_SRUN = {
    *("ntasks", "ntasks-per-node", "tasks-per-node", "cpus-per-task", "nodes", "export", "output", "error", "input", "open-mode", "chdir"),
    *("label", "quiet", "pty", "multi-prog", "jobid", "het-group", "no-allocate", "test-only", "clusters", "uid", "gid", "signal"),
    *("help", "usage", "version", "autocomplete"),
}
RUNS_PROGRAMS = {"prolog", "epilog", "task-prolog", "task-epilog", "bcast", "container", "container-image", "container-entrypoint"}
"""Options of srun that bring a program along."""


def check_text(field: str, text: str, longest: int) -> None:
    """Refuse what a line of a script could not hold."""
    if not (text.strip() and text.isprintable() and "\\" not in text and len(text) <= longest):  # sbatch unescapes \ inside quotes
        raise InputError(f"{field}={text!r}", where="job", expected=f"1 to {longest} printable characters, no line break, no backslash")


def check_name(name: str) -> None:
    """Refuse what could be no job's name, or would show a password to everybody who asks for the queue."""
    check_text("name", name, longest=128)
    if without_credentials(name) != name:
        raise InputError(f"name={name!r} holds a password", where="job", expected="no secrets: all users see the names of jobs")


def check_path(field: str, path: str) -> None:
    """Refuse a path that is not absolute, or that a script could not hold."""
    check_text(field, path, longest=4096)
    if not Path(path).is_absolute():
        raise InputError(f"{field}={path!r}", where="job", expected="an absolute path: the job starts elsewhere")


def seconds_of(text: str) -> int | None:
    """A time as SLURM writes it: 90 (minutes), 90:30, 1:30:00, 2-0 (days and hours), 2-12:30, 2-12:30:00; None: another form."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        return None
    days, *rest = match.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is None and len(numbers) < 3:  # minutes, or minutes:seconds
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def is_secret(name: str) -> bool:
    """Whether what has this name is a secret, as far as a name can tell."""
    upper = re.sub(r"[^A-Z0-9]+", "_", name.upper())
    return bool(SECRET.search(upper)) and not ABOUT.search(upper)


def check_export(name: str) -> None:
    """Refuse what is no name, a secret, or a variable by which SLURM would take the new job for another."""
    if not VARIABLE.fullmatch(name):
        raise InputError(f"export {name!r}", where="job", expected="the name of a variable, without its value")
    if re.match("(SLURM|SBATCH|SRUN)_", name):
        raise InputError(
            f"export {name!r}",
            where="job",
            expected="no variable of SLURM's: it would be that of the job that this shell is in, or an option of srun",
            mend="--extra or --srun-option says the same to the new job alone",
        )
    if is_secret(name):
        raise InputError(
            f"export {name!r}",
            where="job",
            expected="no secrets: what is exported is kept by SLURM and shown to every process of the job",
            mend=f"put the line {name}=… into a file that only you may read (chmod 600), and submit with --secrets FILE",
        )


def check_setup(line: str) -> None:
    """Refuse what is more or less than one line of bash."""
    if not line.isprintable() or len(line) > 4096:
        raise InputError(f"setup: {line!r}", where="job", expected="a line of bash each, without tabs")
    if re.search(r"(?<!\\)(\\\\)*\\$", line):
        raise InputError(f"setup: {line!r}", where="job", expected="whole lines: a backslash at the end joins what follows to it")
    if re.match(r"\s*#(SBATCH|PBS|BSUB|BB|DW)\b", line):
        raise InputError(
            f"setup: {line!r}",
            where="job",
            expected="a line of bash",
            mend="--extra=--KEY=VALUE, or extra in site.yaml, for an option of sbatch",
        )


VALUE = r"""(?:'[^']|"[^"$`]|[^\s'"$`])"""
"""How a value begins that stands there itself; what the shell fetches from elsewhere ($HF_TOKEN, $(cat FILE)) is none."""
SCHEME = "(?:bearer|basic|digest|token|apikey)"
GIVEN = (  # what gives a name its value: NAME=VALUE, --name VALUE, and a header of HTTP
    re.compile(rf"""(?<![^\s;,='"({{&|])-*([A-Za-z_][\w-]*)=(?={VALUE})"""),
    re.compile(rf"""(?<![^\s'"])--?([A-Za-z][\w-]*)['"]?\s+(?!-)(?={VALUE})"""),
    re.compile(rf"""(?<![^\s'"=])([A-Za-z][\w-]*):\s*(?:{SCHEME}\s+|(?!{SCHEME}\s))(?={VALUE})""", re.IGNORECASE),
)
USER = re.compile(rf"""\bcurl\b.*\s(?:-u\s*|--(?:proxy-)?user[\s=]+)['"]?[^\s:'"]+:{VALUE}""")
"""curl's NAME:PASSWORD."""


def check_no_secret(field: str, line: str) -> None:
    """Refuse in the script what SLURM would keep and show: a secret after its name, however it is quoted, and a URL with a password."""
    try:
        as_read = shlex.split(line)  # '' within a name, or around it
    except ValueError:
        as_read = []
    for text in (line, *as_read):
        names = [name for pattern in GIVEN for name in pattern.findall(text)]
        secret = next((name for name in names if is_secret(name) or name.lower().endswith("authorization")), None)
        if secret or USER.search(text) or without_credentials(text) != text:
            raise InputError(
                f"{field} sets {secret}" if secret else f"{field} holds a password: {USER.sub('curl ***', without_credentials(line))}",
                where="job",
                expected="no secrets: the script is kept by SLURM",
                mend=f"put the line {re.sub('[^A-Z0-9]+', '_', secret.upper()) if secret else 'NAME'}=… into a file that only you may read "
                "(chmod 600), and submit with --secrets FILE",
            )


def check_comment(line: str) -> None:
    """Refuse a comment behind which the token of a submission would be cut off in SLURM's answers, or replaced."""
    name, _, comment = line.removeprefix("--").partition("=")
    if name != "comment" and "comment".startswith(name):
        raise InputError(f"extra {line!r}", where="job", expected="--comment=TEXT in full: a word of ours is added to it")
    most = COMMENT_BYTES - len(f" {TOKEN_MARK}") - 32
    if name == "comment" and len(comment.encode()) > most:
        raise InputError(f"extra {line!r}", where="job", expected=f"a comment of at most {most} bytes: a word of ours is added to it")


def check_option(field: str, line: str, ours: set[str]) -> None:
    """Refuse an option that is one of `ours`, also by an abbreviation, or none."""
    check_text(field, line, longest=1024)
    match = re.fullmatch(r"--([a-z][a-z0-9-]*)(=.+)?", line)
    if not match:
        raise InputError(f"{field} {line!r}", where="job", expected="one long option: --key or --key=value")
    if meant := sorted(name for name in ours if name.startswith(match[1])):  # SLURM takes abbreviations: --parsa
        raise InputError(
            f"{field} {line!r}: --{meant[0]}",
            where="job",
            expected="an option that the job does not set itself",
            mend="the option of `retinaforge submit` for it, or leave it: logs, signals, exports and where the job goes are its own",
        )


def masked(word: str) -> str:
    """A word of a command as others may see it: what looks like a secret is starred."""
    name, sep, _ = word.partition("=")
    if sep and is_secret(name):
        return f"{name}=***"
    return without_credentials(word)
