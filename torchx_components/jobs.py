"""A component for every job that users launch, as ``torchx run sgrec.train``.

Words after a component's own options are those of ``sgrec JOB`` (or ``train.py``): what
``sgrec judge run runs/movielens --written 1`` does here, ``torchx run sgrec.judge run
runs/movielens --written 1`` does on a cluster. What is asked for twice goes into
``--settings a=1,b=2``, because torchx refuses a repeated option. What can be checked is
checked before a job is submitted.

A job that goes on from what it has written is started again after a failure; one that
would do its work twice is not.
"""

from typing import Dict, List, Optional

import torchx.specs as specs
from torchx.version import TORCHX_IMAGE

from torchx_components import command, dist

JUDGE_VERBS = ("label", "train", "run")
TABLE_VERBS = ("build", "append", "compact", "info", "verify")


def train(
    *args: str,
    run: str = "movielens",
    settings: Optional[Dict[str, str]] = None,
    image: str = TORCHX_IMAGE,
    h: Optional[str] = None,
    device: str = "cpu",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    j: str = "1x2",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 3,
    rdzv_port: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Pretrain and evaluate on N nodes x M processes; started again, it goes on.

    Args:
        args: further words of train.py, after ``--`` (e.g. ``-- --name first``)
        run: named settings: smoke, movielens, office, ...
        settings: settings of the run (e.g. log.seed=1,out_dir=/data/runs)
        image: image (docker and cluster schedulers; local_cwd ignores it)
        h: a registered named resource; takes precedence over device, cpu, gpu, memMB
        device: cpu, or cuda: then a cluster is asked for one GPU per process
        cpu: CPUs per node; 0: one per process, two at least
        gpu: GPUs per node; 0: none on cpu, one per process on cuda
        memMB: memory per node in MB; 0: 4096 per process
        j: [{min_nodes}:]{nodes}x{processes per node}
        env: environment variables of the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler may start a failed job again (0 to 10)
        rdzv_port: the first node's port where nodes meet; 0: one free on this machine
        mounts: mounts of the container (type=volume,src=sgrec,dst=/data[,readonly])
    """
    command.check_run(run, settings)
    words = ["--run", run, *command.assignments(settings), "--resume", *args]
    app = dist.ddp(
        *words,
        m="sgrec_torchrec.train",
        image=image,
        name="/train",
        h=h,
        device=device,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        j=j,
        env=env,
        max_retries=command.check_retries(max_retries),
        rdzv_port=rdzv_port,
        mounts=mounts,
    )
    return command.called(app, "train")


def align(
    *args: str,
    table: Optional[str] = None,
    num_steps: int = 60,
    settings: Optional[Dict[str, str]] = None,
    image: str = TORCHX_IMAGE,
    h: Optional[str] = None,
    device: str = "cpu",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    j: str = "1x2",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 3,
    rdzv_port: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Post-train a pretrained run by A2PO, and evaluate it; started again, it goes on.

    Args:
        args: folder of the run, then further words of train.py
        table: folder of the reward table; without it the business reward alone
        num_steps: updates of post-training
        settings: further settings (e.g. align.prompts_per_user=1)
        image: image (docker and cluster schedulers; local_cwd ignores it)
        h: a registered named resource; takes precedence over device, cpu, gpu, memMB
        device: cpu, or cuda: then a cluster is asked for one GPU per process
        cpu: CPUs per node; 0: one per process, two at least
        gpu: GPUs per node; 0: none on cpu, one per process on cuda
        memMB: memory per node in MB; 0: 4096 per process
        j: [{min_nodes}:]{nodes}x{processes per node}
        env: environment variables of the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler may start a failed job again (0 to 10)
        rdzv_port: the first node's port where nodes meet; 0: one free on this machine
        mounts: mounts of the container (type=volume,src=sgrec,dst=/data[,readonly])
    """
    command.check_words("align", args, "runs/movielens")
    if num_steps < 1:
        raise command.LaunchError(f"num_steps = {num_steps}: give 1 or more")
    of_table = {} if table is None else {"align.table": table}
    chosen = {"align.num_steps": str(num_steps), **of_table, **(settings or {})}
    given = command.assignments(chosen)
    words = ["--config", f"{args[0]}/config.json", *given, "--resume", *args[1:]]
    app = dist.ddp(
        *words,
        m="sgrec_torchrec.train",
        image=image,
        name="/align",
        h=h,
        device=device,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        j=j,
        env=env,
        max_retries=command.check_retries(max_retries),
        rdzv_port=rdzv_port,
        mounts=mounts,
    )
    return command.called(app, "align")


def evaluate(
    *args: str,
    image: str = TORCHX_IMAGE,
    h: Optional[str] = None,
    device: str = "cpu",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    j: str = "1x2",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 1,
    rdzv_port: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Rank the test rows again with a run's best checkpoint, on N nodes x M processes.

    Args:
        args: folder of the run
        image: image (docker and cluster schedulers; local_cwd ignores it)
        h: a registered named resource; takes precedence over device, cpu, gpu, memMB
        device: cpu, or cuda: then a cluster is asked for one GPU per process
        cpu: CPUs per node; 0: one per process, two at least
        gpu: GPUs per node; 0: none on cpu, one per process on cuda
        memMB: memory per node in MB; 0: 4096 per process
        j: [{min_nodes}:]{nodes}x{processes per node}
        env: environment variables of the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler may start a failed job again (0 to 10)
        rdzv_port: the first node's port where nodes meet; 0: one free on this machine
        mounts: mounts of the container (type=volume,src=sgrec,dst=/data[,readonly])
    """
    command.check_words("evaluate", args, "runs/movielens")
    app = dist.ddp(
        "evaluate",
        *args,
        m=command.CLI,
        image=image,
        name="/evaluate",
        h=h,
        device=device,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        j=j,
        env=env,
        max_retries=command.check_retries(max_retries),
        rdzv_port=rdzv_port,
        mounts=mounts,
    )
    return command.called(app, "evaluate")


def judge(
    *args: str,
    image: str = TORCHX_IMAGE,
    h: Optional[str] = None,
    device: str = "cpu",
    cpu: int = 4,
    memMB: int = 16384,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 3,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Judge candidates by a language model; ``run``, started again, goes on.

    Args:
        args: words of ``sgrec judge``: label, train or run, then paths
        image: image (docker and cluster schedulers; local_cwd ignores it)
        h: a registered named resource; takes precedence over device, cpu, memMB
        device: cpu, or cuda: then a cluster is asked for one GPU
        cpu: CPUs
        memMB: memory in MB; a model of 7e9 weights wants 32768
        env: environment variables of the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler may start a failed job again (0 to 10)
        mounts: mounts of the container (type=volume,src=sgrec,dst=/data[,readonly])
    """
    command.check_words("judge", args, "run runs/movielens", JUDGE_VERBS)
    size = command.node_size(device, 1, cpu, 0, memMB)
    return command.one_process(
        "judge",
        ["judge", *args],
        image=image,
        resource=specs.resource(**size, h=h),
        env=env,
        max_retries=max_retries,
        mounts=mounts,
    )


def table(
    *args: str,
    image: str = TORCHX_IMAGE,
    h: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Build, grow or check a reward table; once, since append would append twice.

    Args:
        args: words of ``sgrec table``: build, append, compact, info or verify; paths
        image: image (docker and cluster schedulers; local_cwd ignores it)
        h: a registered named resource; takes precedence over cpu, memMB
        cpu: CPUs
        memMB: memory in MB; twice what ``--max-memory-gib`` (4) lets sorting take
        env: environment variables of the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler may start a failed job again (0 to 10)
        mounts: mounts of the container (type=volume,src=sgrec,dst=/data[,readonly])
    """
    example = "build runs/movielens/judged --out runs/movielens/reward_table"
    command.check_words("table", args, example, TABLE_VERBS)
    return command.one_process(
        "table",
        ["table", *args],
        image=image,
        resource=specs.resource(cpu=cpu, gpu=0, memMB=memMB, h=h),
        env=env,
        max_retries=max_retries,
        mounts=mounts,
    )


def export(
    *args: str,
    image: str = TORCHX_IMAGE,
    h: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 1,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Write a run as one folder to serve; it appears whole, or not at all.

    Args:
        args: words of ``sgrec export``: a run or a checkpoint, ``--out``, options
        image: image (docker and cluster schedulers; local_cwd ignores it)
        h: a registered named resource; takes precedence over cpu, memMB
        cpu: CPUs
        memMB: memory in MB; more than twice the tables
        env: environment variables of the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler may start a failed job again (0 to 10)
        mounts: mounts of the container (type=volume,src=sgrec,dst=/data[,readonly])
    """
    example = "runs/movielens --out packages/movielens"
    command.check_words("export", args, example)
    if not any(word == "--out" or word.startswith("--out=") for word in args):
        raise command.LaunchError(
            "sgrec.export: --out is missing: name the package's folder; example: "
            f"torchx run sgrec.export {example}"
        )
    return command.one_process(
        "export",
        ["export", *args],
        image=image,
        resource=specs.resource(cpu=cpu, gpu=0, memMB=memMB, h=h),
        env=env,
        max_retries=max_retries,
        mounts=mounts,
    )


def serve(
    *args: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int = 2,
    settings: Optional[Dict[str, str]] = None,
    image: str = TORCHX_IMAGE,
    h: Optional[str] = None,
    cpu: int = 0,
    memMB: int = 4096,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 10,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Answer requests over HTTP until it is cancelled; a crashed server starts again.

    Args:
        args: a package or a run, then further words of ``sgrec serve``
        host: address to listen on; a cluster's other machines need 0.0.0.0
        port: port to listen on, which the job exposes as ``http``
        threads: threads of all passes of the network
        settings: settings of the server (e.g. latency_ms=100,max_queue=64)
        image: image (docker and cluster schedulers; local_cwd ignores it)
        h: a registered named resource; takes precedence over cpu, memMB
        cpu: CPUs; 0: one a thread
        memMB: memory in MB: the package, the cache of states, and 2048 beside
        env: environment variables of the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler may start a failed job again (0 to 10)
        mounts: mounts of the container (type=volume,src=sgrec,dst=/data[,readonly])
    """
    command.check_words("serve", args, "packages/movielens")
    command.check_server(host, port, settings)
    if threads < 1:
        raise command.LaunchError(f"threads = {threads}: give 1 or more")
    options = {"--host": host, "--port": port, "--threads": threads}
    words = [str(word) for pair in options.items() for word in pair]
    return command.one_process(
        "serve",
        ["serve", args[0], *words, *command.assignments(settings), *args[1:]],
        image=image,
        resource=specs.resource(cpu=cpu or threads, gpu=0, memMB=memMB, h=h),
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        port_map={"http": port},
    )
