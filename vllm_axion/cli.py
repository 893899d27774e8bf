# SPDX-License-Identifier: Apache-2.0
"""The `vllm-axion` command."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from vllm_axion import __version__

if TYPE_CHECKING:
    from vllm_axion.serving.semantic_router import SemanticRouter

app = typer.Typer(
    name="vllm-axion",
    help="Many models behind one OpenAI-compatible server on CPU-only machines, as a vLLM plug-in.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(
    name="config", help="Check configuration files, write their schema.", no_args_is_help=True
)
app.add_typer(config_app)

_USAGE_ERROR = 2


def main() -> None:
    """Console script `vllm-axion`."""
    app()


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        print(f"vllm-axion: error: {line}", file=sys.stderr)
    raise typer.Exit(_USAGE_ERROR)


def _print_version(wanted: bool) -> None:
    if wanted:
        from vllm_axion.compat import vllm_flavour

        flavour = vllm_flavour()
        installed = (
            f"vLLM {flavour.version} ({flavour.name} build)" if flavour.version else "no vLLM installed"
        )
        print(f"vllm-axion {__version__}, {installed}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the versions and leave."
        ),
    ] = False,
) -> None:
    pass


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[CONFIG] [--host HOST] [--port PORT] [any flag of vllm serve]",
)
def serve(context: typer.Context) -> None:
    """Serve the experts of a configuration file behind one OpenAI-compatible server.

    [bold]CONFIG[/bold] is a JSON file or the name of a packaged preset; without it the preset
    config.five_models_all_working.json is served. The same as [bold]vllm serve --multi-model CONFIG[/bold].

    Flags of the server: [bold]--host[/bold] (default 127.0.0.1), [bold]--port[/bold] (default 8082), --uds,
    --api-key, --ssl-keyfile, --ssl-certfile, --log-level, --log-file FILE, --log-format, --profile.

    Flags of the engines, for instance --max-num-seqs 8 or --enforce-eager, are defaults for every expert; the
    configuration file overrides them. All of them: [bold]vllm serve --help=all[/bold]

    Example: [bold]vllm-axion serve config.json --port 9000 --max-num-seqs 8[/bold]
    """
    from vllm_axion.serving import command_line

    command_line.serve(context.args, prog="vllm-axion serve")


@config_app.command("check")
def config_check(
    file: Annotated[str, typer.Argument(help="JSON file, or the name of a packaged preset.")],
) -> None:
    """Print every fault of a configuration file with its place and a suggestion. Exit status 1 if there is
    one.
    """
    from vllm_axion.serving.config_check import check, render

    report = check(file)
    Console(soft_wrap=True).print(render(report), markup=False, highlight=False)
    raise typer.Exit(report.exit_status)


@config_app.command("schema")
def config_schema(
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write instead of standard output.")
    ] = None,
) -> None:
    """Write the JSON Schema of configuration files."""
    from vllm_axion.serving.config import schema

    text = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as fault:
        _fail(f"{out}: {fault.strerror}")


_Config = Annotated[str | None, typer.Option("--config", help="JSON file, or the name of a packaged preset.")]


@app.command("route")
def route_command(
    text: Annotated[str, typer.Argument(help="The message to route.")],
    config: _Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which expert would answer a message, and why. Loads no model."""
    from dataclasses import asdict

    from rich.table import Table

    router = _router(config)
    route = router.route([{"role": "user", "content": text}])
    if as_json:
        print(json.dumps(asdict(route), indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("expert", route.expert_id)
    table.add_row("domain", f"{route.domain}, confidence {route.confidence:.2f}")
    table.add_row("reason", route.reason)
    table.add_row("evidence", ", ".join(route.evidence) or "none")
    ranked = sorted(route.probabilities.items(), key=lambda item: -item[1])
    table.add_row("chances", ", ".join(f"{domain} {chance:.2f}" for domain, chance in ranked))
    table.add_row("took", f"{route.ms:.2f} ms")
    Console(soft_wrap=True, markup=False, highlight=False).print(table)


@app.command("route-eval")
def route_eval_command(
    file: Annotated[Path, typer.Argument(help="Lines domain<TAB>text.")],
    config: _Config = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="File for the reliability diagram and the confusion.")
    ] = None,
) -> None:
    """Route the messages of a labelled file and print how many go where they should."""
    from vllm_axion.serving import route_eval

    router = _router(config)
    try:
        rows = route_eval.read_labelled(file, router.domains)
        result = route_eval.evaluate(rows, lambda text: route_eval.ask(router, text))
        if json_file is not None:
            json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if plot_file is not None:
            route_eval.plot(result, plot_file)
    except OSError as fault:
        _fail(f"{fault.filename}: {fault.strerror}")
    except ValueError as fault:
        _fail(str(fault))
    for line in route_eval.summary(result):
        print(line)


def _router(config: str | None) -> "SemanticRouter":
    from vllm_axion.serving.config import PRESETS, ConfigError, MultiModelConfig
    from vllm_axion.serving.semantic_router import SemanticRouter

    try:
        return SemanticRouter(MultiModelConfig.load(config or PRESETS[0]))
    except ConfigError as fault:
        _fail(str(fault))


@app.command("demo-models")
def demo_models(
    directory: Annotated[Path, typer.Argument(help="Folder to make; each model gets a folder inside.")],
) -> None:
    """Make five tiny random-weight models, with tokenizer and chat template, in seconds."""
    from vllm_axion.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from vllm_axion.demo_models import DemoModelsError, make_demo_models

    console = Console(stderr=True)
    try:
        with console.status("making the demo models…") as status:

            def progress(line: str) -> None:
                console.print(line, markup=False, highlight=False)
                status.update(line)

            made = make_demo_models(directory, progress=progress)
    except (DemoModelsError, OSError) as fault:
        _fail(str(fault))
    for path in made:
        print(path)


if __name__ == "__main__":
    main()
