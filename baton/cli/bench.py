"""The commands of ``baton bench`` and their help; what they do stands in ``bench_run`` and
``bench_results``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from baton.cli.guard import clear_errors, home_folder, survivable_output

bench_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measures endpoints and compares serving profiles.\n\n"
    "Start here: `baton bench compare cpu-disaggregated cpu-standard` on a machine without a GPU, "
    "or `baton bench run URL` for any OpenAI endpoint. `baton bench workload list` shows what can "
    "be sent; a workload is named, or is a file, which has a slash in its path or ends in .yaml.",
)
workload_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Looks at workloads: the files that say what a benchmark sends, and when.",
)
bench_app.add_typer(workload_app, name="workload", short_help="List, show and check workloads.")

Home = Annotated[
    Path | None,
    typer.Option(
        envvar="BATON_HOME",
        help="Folder for results, models and logs.",
        show_default="~/.local/state/baton",
    ),
]
WorkloadName = Annotated[
    str, typer.Option("--workload", "-w", help="What to send: a built-in name or a file.")
]
Model = Annotated[
    str | None, typer.Option(help="Model name to ask for.", show_default="the only one")
]
ApiName = Annotated[
    Literal["completions", "chat"], typer.Option(help="Endpoint that the load goes to.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="OPENAI_API_KEY", help="Sent as a bearer token; never kept.", show_default=False
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="tokenizer.json of the model, or a folder with it, for prompts of exact length.",
        show_default="lengths by a measured ratio",
    ),
]
Duration = Annotated[
    float | None, typer.Option(min=0.1, help="Seconds of sending.", show_default="the workload's")
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Of everything that is drawn.", show_default="the workload's"),
]
Processes = Annotated[int, typer.Option(min=1, max=64, help="Processes that send.")]
SloText = Annotated[
    str | None,
    typer.Option(
        "--slo",
        help="Service level in seconds, as ttft=0.5,tpot=0.1,e2e=20.",
        show_default="the workload's, else the profile's",
    ),
]
ForceOutput = Annotated[bool, typer.Option(help="Ask for answers of exactly the planned length.")]
Result = Annotated[str, typer.Argument(help="`latest`, an id or its beginning, or a folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@contextmanager
def _ready() -> Iterator[None]:
    """Errors as one line; a clear word where the extra is not installed."""
    with clear_errors(), survivable_output():
        try:
            yield
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in {
                "aiohttp",
                "matplotlib",
                "numpy",
                "pyarrow",
                "scipy",
            }:
                sys.stderr.write(
                    f"baton: {error.name} is not installed; "
                    'benchmarks need: pip install "baton-serving[benchmarks]"\n'
                )
                raise typer.Exit(2) from error
            raise


@bench_app.command("run", short_help="Measure one endpoint.")
def run_command(
    url: Annotated[str, typer.Argument(help="Base URL of an OpenAI endpoint.", metavar="URL")],
    workload: WorkloadName = "smoke",
    model: Model = None,
    api: ApiName = "completions",
    api_key: ApiKey = None,
    tokenizer: Tokenizer = None,
    rate_scale: Annotated[
        float, typer.Option(min=1e-6, help="Factor on rates and concurrency.")
    ] = 1.0,
    time_scale: Annotated[
        float, typer.Option(min=1e-6, help="Factor on all times: 2 takes twice as long.")
    ] = 1.0,
    duration: Duration = None,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds of other requests before.")] = 2.0,
    seed: Seed = None,
    salt: Annotated[
        str | None, typer.Option(help="Makes the prompts' text.", show_default="random")
    ] = None,
    processes: Processes = 1,
    slo: SloText = None,
    force_output: ForceOutput = True,
    stream: Annotated[bool, typer.Option(help="Stream the answers.")] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 600.0,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Several runs: `auto` raises the rate until saturation, or factors as 0.5,1,2.",
            show_default="one run",
        ),
    ] = None,
    metrics_url: Annotated[
        list[str] | None,
        typer.Option(help="Prometheus page to scrape as well; repeatable.", show_default=False),
    ] = None,
    cluster_token: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_CLUSTER_TOKEN",
            help="Baton's, to scrape the workers behind a router.",
            show_default=False,
        ),
    ] = None,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write the records as Parquet as well.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the result.", show_default="a new one in HOME/benchmarks"),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Sends a workload to an OpenAI endpoint and says what came back, and whether to believe it.

    Ends with status 0 when the run is valid, 3 when it is not, 130 when it was interrupted; the
    result of an interrupted run is kept. Of a sweep the lowest level decides, since the last one
    is one that cannot keep up.

    Examples:

      baton bench run http://127.0.0.1:8000

      baton bench run http://127.0.0.1:8000 -w ./my-traffic.yaml --sweep auto --slo ttft=0.5
    """
    with _ready():
        from baton.cli.bench_run import RunFlags, run_run

        raise typer.Exit(
            run_run(
                RunFlags(
                    url=url, workload=workload, model=model, api=api, api_key=api_key,
                    tokenizer=tokenizer, rate_scale=rate_scale, time_scale=time_scale,
                    duration_s=duration, warmup_s=warmup, seed=seed, salt=salt,
                    processes=processes, slo=slo, force_output=force_output, stream=stream,
                    timeout_s=timeout, sweep=sweep, metrics_urls=tuple(metrics_url or ()),
                    cluster_token=cluster_token, parquet=parquet, output=output,
                    home=home_folder(home), as_json=as_json,
                )
            )
        )  # fmt: skip


@bench_app.command("compare", short_help="Compare profiles or endpoints.")
def compare_command(
    arms: Annotated[
        list[str],
        typer.Argument(
            help="PROFILE, NAME=PROFILE, NAME=URL or NAME=URL@PROFILE.", metavar="ARM..."
        ),
    ],
    workload: WorkloadName = "short-and-long",
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id for all profiles that are started; `random-100m` is made here. "
            "Where all arms are endpoints, the model's name.",
            show_default="the profile's; random-100m instead of the demo model",
        ),
    ] = None,
    pairs: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Repetitions; 5 are the least for a verdict, 8 find more."
        ),
    ] = 8,
    levels: Annotated[
        str, typer.Option(help="Factors on the workload's load, as 0.5,1,1.5.")
    ] = "1",
    duration: Duration = None,
    warmup: Annotated[
        float, typer.Option(min=0, help="Seconds of other requests before each block.")
    ] = 8.0,
    seed: Seed = None,
    processes: Processes = 1,
    api: ApiName = "completions",
    api_key: ApiKey = None,
    tokenizer: Tokenizer = None,
    slo: SloText = None,
    force_output: ForceOutput = True,
    cluster_token: Annotated[
        str | None,
        typer.Option(
            help="Of the Baton endpoints that run already, to scrape the workers behind their "
            "routers. Sent to every URL.",
            show_default=False,
        ),
    ] = None,
    between: Annotated[
        Literal["parked", "running", "stopped"] | None,
        typer.Option(
            help="What other arms' engines do while one is measured: parked, running or ended.",
            show_default="parked; stopped where there are GPUs",
        ),
    ] = None,
    cpu_threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Compute threads of each CPU engine.",
            show_default="the cores, shared among an arm's workers",
        ),
    ] = None,
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds until a profile must serve.")
    ] = 900.0,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the result.", show_default="a new one in HOME/benchmarks"),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Measures profiles in turn, block by block, and says which is better, with confidence.

    Each profile is started as `baton up` would. Blocks alternate (A B B A ...), all arms of a
    repetition get the same schedule, and no prompt is ever sent twice. The first arm is the base.
    The report is one HTML page, with Markdown and JSON beside it. Ctrl-C keeps what was measured.

    Ends with status 0 when a verdict could be formed, 3 when what was measured does not allow
    one, 130 when it was interrupted.

    Examples:

      baton bench compare cpu-standard cpu-disaggregated cpu-standard-chunk512

      baton bench compare old=http://10.0.0.5:8000 new=http://10.0.0.6:8000 -w chat --pairs 10
    """
    with _ready():
        from baton.cli.bench_run import CompareFlags, run_compare

        raise typer.Exit(
            run_compare(
                CompareFlags(
                    arms=tuple(arms), workload=workload, model=model, pairs=pairs, levels=levels,
                    duration_s=duration, warmup_s=warmup, seed=seed, processes=processes, api=api,
                    api_key=api_key, tokenizer=tokenizer, slo=slo, force_output=force_output,
                    cluster_token=cluster_token, between=between, cpu_threads=cpu_threads,
                    start_timeout_s=start_timeout, output=output, home=home_folder(home),
                    as_json=as_json,
                )
            )
        )  # fmt: skip


@bench_app.command("calibrate", short_help="Check the instrument itself on this machine.")
def calibrate_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Accuracy only, not how far the generator goes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measures a mock server whose delays are known, and says how far the figures are off.

    Also shows what a closed loop hides when a server stalls, and how many requests per second
    this machine can send before the instrument itself is the limit. Takes about two minutes.

    Ends with status 0 when every figure is within 2 % or 1 ms of the truth, 3 when not.

    Example:

      baton bench calibrate --quick
    """
    with _ready():
        from baton.cli.bench_run import run_calibrate

        raise typer.Exit(run_calibrate(quick=quick, as_json=as_json))


@bench_app.command("show", short_help="Show a result in the terminal.")
def show_command(result: Result = "latest", home: Home = None, as_json: Json = False) -> None:
    """Shows a run or a comparison.

    Example:

      baton bench show latest
    """
    with _ready():
        from baton.cli.bench_results import show

        show(home_folder(home), result, as_json=as_json)


@bench_app.command("report", short_help="Compute a result's figures and reports anew.")
def report_command(result: Result = "latest", home: Home = None) -> None:
    """Computes the figures of a comparison again from its records, and writes its reports.

    Of use after an interruption, or after an update of Baton.

    Example:

      baton bench report 20261120
    """
    with _ready():
        from baton.cli.bench_results import report

        report(home_folder(home), result)


@bench_app.command("history", short_help="List results.")
def history_command(home: Home = None, as_json: Json = False) -> None:
    """Lists all results, newest first, with commit, profile versions and what they found."""
    with _ready():
        from baton.cli.bench_results import history

        history(home_folder(home), as_json=as_json)


@bench_app.command("export", short_help="Write a run in another tool's format.")
def export_command(
    result: Result,
    form: Annotated[
        Literal["parquet", "inference-perf"],
        typer.Option("--format", help="What to write."),
    ],
    output: Annotated[Path, typer.Option(help="File to write, or folder for inference-perf.")],
    home: Home = None,
) -> None:
    """Writes a run in another tool's format; a block of a comparison is a run, by its folder.

    Example:

      baton bench export latest --format parquet --output run.parquet
    """
    with _ready():
        from baton.cli.bench_results import export

        export(home_folder(home), result, form, output)


@workload_app.command("list", short_help="List the built-in workloads.")
def workload_list() -> None:
    """Lists the built-in workloads and what they are for."""
    with _ready():
        from baton.cli.bench_results import workload_table

        workload_table()


@workload_app.command("show", short_help="Print a workload as YAML, defaults filled in.")
def workload_show(
    name: Annotated[str, typer.Argument(help="Built-in name or file.", metavar="NAME|FILE")],
) -> None:
    """Prints a workload as YAML, with every default filled in.

    Example, to start a workload of your own:

      baton bench workload show short-and-long > mine.yaml
    """
    with _ready():
        from baton.cli.bench_results import show_workload

        show_workload(name)


@workload_app.command("validate", short_help="Check workload files and their traces.")
def workload_validate(
    files: Annotated[list[Path], typer.Argument(help="Workload files.", metavar="FILE...")],
) -> None:
    """Checks workload files and the traces that they name, and says what they would send.

    Ends with status 0 when all are sound, 2 when one is not.
    """
    with _ready():
        from baton.cli.bench_results import validate_workloads

        raise typer.Exit(validate_workloads(files))


@workload_app.command("schema", short_help="Print the JSON Schema of workloads.")
def workload_schema_command() -> None:
    """Prints the JSON Schema of workloads, for editors that complete and check YAML."""
    with _ready():
        from baton.cli.bench_results import show_schema

        show_schema()
