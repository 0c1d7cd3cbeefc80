"""``torchx run dist.ddp -j 2x8 train.py``: torchx's own ddp, script as first word.

Stock torchx takes positional words as arguments *of* the script and wants the script
by ``--script``; here the first positional ``*.py`` is the script. Annotations say
``Optional``: the component linter of torchx 0.7.0 cannot read ``X | None``.

A component does not learn which scheduler runs it. So GPUs are asked for only where the
user says ``--device cuda`` (torchx's local schedulers ignore the request, a cluster
without GPUs would never start the job), and the port where nodes meet is one that is
free here, which two local jobs need; for a cluster whose firewall lets one port
through, give it: ``--rdzv_port 29500``.
"""

from typing import Dict, List, Optional

import torchx.components.dist as stock
import torchx.specs as specs
from torchx.components.structured_arg import StructuredJArgument
from torchx.version import TORCHX_IMAGE

from torchx_components import command


def ddp(
    *script_args: str,
    script: Optional[str] = None,
    m: Optional[str] = None,
    image: str = TORCHX_IMAGE,
    name: str = "/",
    h: Optional[str] = None,
    device: str = "cpu",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    j: str = "1x2",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 0,
    mounts: Optional[List[str]] = None,
    debug: bool = False,
    tee: int = 3,
) -> specs.AppDef:
    """Run one script as N nodes x M processes under torchrun.

    Args:
        script_args: the script (first word, ending in .py), then its arguments
        script: the script, where it is not the first word
        m: the module to run instead of a script
        image: image (docker and cluster schedulers; local_cwd ignores it)
        name: ``{experiment}/{run}``; by default the name of the script
        h: a registered named resource; takes precedence over device, cpu, gpu, memMB
        device: cpu, or cuda: then a cluster is asked for one GPU per process
        cpu: CPUs per node; 0: one per process, two at least
        gpu: GPUs per node; 0: none on cpu, one per process on cuda
        memMB: memory per node in MB; 0: 4096 per process
        j: [{min_nodes}:]{nodes}x{processes per node}
        env: environment variables of the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler may start a failed job again
        rdzv_port: the first node's port where nodes meet; 0: one free on this machine
        mounts: mounts of the container (type=bind,src=/host,dst=/job[,readonly])
        debug: preset flags for debugging collectives
        tee: streams to console and file. 0: none, 1: out, 2: err, 3: both
    """
    script, script_args = command.take_script(script_args, script, m)
    app = stock.ddp(
        *script_args,
        script=script,
        m=m,
        image=image,
        name=name,
        h=h,
        j=j,
        env=env,
        max_retries=max_retries,
        rdzv_port=command.check_port(rdzv_port) or command.free_port(),
        mounts=mounts,
        debug=debug,
        tee=tee,
        **command.node_size(device, command.processes_a_node(j), cpu, gpu, memMB),
    )
    command.end_torchrun_options(app, script or m or "", script_args)
    app = command.with_program_on_path(app)
    return command.end_where_port_is_taken(app, rdzv_port)


def spmd(
    *args: str,
    script: Optional[str] = None,
    m: Optional[str] = None,
    image: str = TORCHX_IMAGE,
    name: str = "/",
    h: str = "gpu.small",
    j: str = "1x1",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    debug: bool = False,
) -> specs.AppDef:
    """Run one script on named hosts; ``-j 2`` means every GPU of two of them.

    Args:
        args: the script (first word, ending in .py), then its arguments
        script: the script, where it is not the first word
        m: the module to run instead of a script
        image: image (docker and cluster schedulers; local_cwd ignores it)
        name: ``{experiment}/{run}``; by default the name of the script
        h: a registered named resource (e.g. aws_p4d.24xlarge)
        j: {nodes}[x{processes per node}]; by default one process per GPU of the host
        env: environment variables of the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler may start a failed job again
        mounts: mounts of the container (type=bind,src=/host,dst=/job[,readonly])
        debug: preset flags for debugging collectives
    """
    return ddp(
        *args,
        script=script,
        m=m,
        image=image,
        name=name,
        h=h,
        j=str(StructuredJArgument.parse_from(h, j)),
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        debug=debug,
    )
