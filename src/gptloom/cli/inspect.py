"""`gptloom inspect`: compute the views of a model, and write their pictures, their page and their numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptloom.cli.flags import RUN, TEXTS, add_model_flags, loading, make_parser, read_prompt
from gptloom.config.run import DataConfig
from gptloom.errors import ConfigError, ExitCode, InputError, nearest
from gptloom.files import to_json

if TYPE_CHECKING:
    from gptloom.bundle import Bundle
    from gptloom.data.tokens import Tokens
    from gptloom.interpret.views import Alignment, Alternative, AttentionView, Reading, ScoredToken
    from gptloom.plots.core import TokenView

VIEWS = ("attention", "lens", "tokens", "embedding", "statistics", "distance")
HELP = """\
attention   attention.png, every head of every layer; head-L-H.png, a large map of one head
lens        lens.png, the prediction after each layer (the logit lens)
tokens      tokens.html, the text coloured by each token's loss, with its probability, its rank and the alternatives
embedding   embedding.png, the token table in the plane of its largest variance
statistics  statistics.png, sizes of activations, weights and gradients, entropy of the heads, units that are off
distance    distance.png, how strongly the loss depends on tokens further back

An encoder-decoder translates the prompt. alignment.png shows the attention from each written token to the source,
averaged over the heads of the layer with the largest weights (--layer and --head draw single heads). reading.png
shows the encoder's heads. tokens.html is written too.

inspect.json contains the numbers of all views. Layers and heads count from 0. The most likely token has rank 0.
Losses are read in windows of the model's context, as `gptloom eval` reads them; maps show the last window."""

MOST_TOKENS = 20_000
"""Limit of the text's length in tokens; longer pages and JSON files would be too large to use."""

MOST_WEIGHTS = 4_000_000
"""Limit of the attention weights in inspect.json."""


def inspect_command(words: list[str]) -> int:
    """Show attention maps, losses and statistics of a trained model on a text."""
    args = _read_words(words)
    with loading():
        import gptloom.interpret.statistics
        import gptloom.plots.core
        import gptloom.plots.inspect
        import gptloom.plots.statistics  # noqa: F401
        from gptloom.bundle import Bundle
        from gptloom.devices import SMALL_MODEL, threads

    bundle = Bundle.load(args.run, device=args.device, which=args.checkpoint)
    is_run = (Path(args.run) / "checkpoints").is_dir()
    out = args.out or (Path(args.run) / "inspect" if is_run else Path("inspect"))
    writer = Writer(Path(args.run).resolve().name, out)
    if bundle.task.pairs:
        writer.write_alignment(_align(bundle, args), layer=args.layer, head=args.head)
    else:
        tokens = _read_tokens(args, bundle, writer.notes)
        with threads(1 if bundle.model.parameter_count() < SMALL_MODEL else None):
            writer.write_views(bundle, tokens, args.show, top=args.top, layer=args.layer, head=args.head)
    writer.report(as_json=args.json)
    return ExitCode.DONE


def _read_words(words: list[str]) -> argparse.Namespace:
    parser = make_parser("inspect", "RUN", inspect_command, epilog=HELP)
    parser.add_argument("run", metavar="RUN", help=RUN)
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--prompt", metavar="TEXT", help="the text to read; - takes it from standard input")
    texts.add_argument("--text", metavar="TEXT", help=f"the text to read: {TEXTS}")
    parser.add_argument("--encoding", help="text encoding of --text (default: UTF-8, else detected)")
    about = f"views to make, of {', '.join(VIEWS)} [all]"
    parser.add_argument("--show", metavar="VIEW,...", default=",".join(VIEWS), help=about)
    about = "layer of the large map (default: the layer of the head that looks at other tokens most)"
    parser.add_argument("--layer", metavar="L", type=int, help=about)
    about = "head of the large map (default: the head that looks at other tokens most)"
    parser.add_argument("--head", metavar="H", type=int, help=about)
    parser.add_argument("--top", metavar="N", type=int, default=5, help="alternatives to list [5]")
    about = "folder of the files (default: RUN/inspect for a run folder, else ./inspect)"
    parser.add_argument("--out", metavar="DIR", type=Path, help=about)
    add_model_flags(parser)
    args = parser.parse(words)
    args.show = [view.strip() for view in args.show.split(",") if view.strip()]
    choices = f"choose from {', '.join(VIEWS)}"
    for view in args.show:
        if view not in VIEWS:
            cure = nearest(view, VIEWS, count=1) or choices
            raise ConfigError(f"there is no view {view!r}", where="--show", cure=cure)
    if not args.show:
        raise ConfigError("names no view", where="--show", cure=choices)
    if args.top < 1:
        raise ConfigError(f"{args.top} alternatives cannot be listed", where="--top", cure="try --top 5")
    return args


def _align(bundle: Bundle, args: argparse.Namespace) -> Alignment:
    """Translate the prompt of the command line."""
    from gptloom.interpret.views import align

    if args.prompt is None:
        what, cure = "an encoder-decoder translates a prompt, not a text", "give the source with --prompt"
        raise InputError(what, where="--text", cure=cure)
    source = bundle.tokenizer.encode(read_prompt(args.prompt), args.on_unknown).tolist()
    limit = bundle.model.config.block_size
    if not 0 < len(source) <= limit:
        what = f"a source has 1 to {limit} tokens, not {len(source)}"
        raise InputError(what, where="--prompt", cure="give the text to translate")
    return align(bundle, source, top=args.top)


def _read_tokens(args: argparse.Namespace, bundle: Bundle, notes: list[str]) -> Tokens:
    """Read the text as tokens, as `gptloom eval` and `gptloom sample` do; append notes on the text to `notes`."""
    import numpy as np

    from gptloom.data.sources import open_corpus
    from gptloom.data.tokens import Tokens, prepare

    if args.text is not None:
        config = DataConfig(encoding=args.encoding, on_unknown=args.on_unknown)
        corpus = open_corpus([args.text], config)
        ids, where = prepare(corpus, bundle.tokenizer, config).ids, "--text"
        notes += corpus.notes
    else:
        ids, where = bundle.tokenizer.encode(read_prompt(args.prompt), args.on_unknown), "--prompt"
    if len(ids) < 2:
        what = f"has {len(ids)} token{'s' * (len(ids) != 1)}, and a loss needs 2"
        raise InputError(what, where=where, cure="give a longer text")
    if len(ids) > MOST_TOKENS:
        notes.append(f"the text has {len(ids):,} tokens; only the first {MOST_TOKENS:,} are read")
    return Tokens(ids[:MOST_TOKENS], np.zeros(1, dtype=np.int64))


class Writer:
    """Writes the views into a folder and collects their numbers for inspect.json.

    Attributes:
        values: the result, as JSON; it contains notes, missing and files.
        notes: remarks for the user.
        missing: the views that this model does not have, with the reason.
        files: the paths of the written files, by view.
        tokens: the tokens with their losses, for the table on the terminal.
        summary: one line below that table.
    """

    def __init__(self, name: str, out: Path) -> None:
        """Set the name of the model for titles, and the folder of the files."""
        self.name, self.out = name, out
        self.notes: list[str] = []
        self.missing: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.values: dict[str, Any] = {"notes": self.notes, "missing": self.missing, "files": self.files}
        self.tokens: list[TokenView] = []
        self.summary = ""

    def path(self, name: str) -> Path:
        """Return the path of a new file and list it in the result."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / name
        self.files[name.rpartition(".")[0]] = str(path)
        return path

    def write_views(
        self, bundle: Bundle, tokens: Tokens, show: Sequence[str], *, top: int, layer: int | None, head: int | None
    ) -> None:
        """Compute and write the views of a text."""
        from gptloom.interpret.views import missing_view, read_text

        reading = read_text(bundle, tokens)
        if reading.is_cut:
            size = bundle.model.config.block_size
            windows = f"losses are read in windows of that size, and maps show the last {size} tokens"
            self.notes.append(f"the model sees {size} tokens at a time: {windows}")
        views: dict[str, Callable[[], None]] = {
            "attention": lambda: self._attention(reading, layer, head),
            "lens": lambda: self._lens(reading, top),
            "tokens": lambda: self._tokens(reading, top),
            "embedding": lambda: self._embedding(reading),
            "statistics": lambda: self._statistics(reading),
            "distance": lambda: self._distance(reading),
        }
        for name, write in views.items():
            reason = missing_view(reading, name) if name in show else None
            if reason is not None:
                given = next((flag for flag, value in (("--layer", layer), ("--head", head)) if value is not None), "")
                if name == "attention" and given:
                    raise ConfigError(reason, where=given, cure=f"leave {given} out")
                self.missing[name] = reason
            elif name in show:
                write()

    def _attention(self, reading: Reading, layer: int | None, head: int | None) -> None:
        """Draw the maps of all heads, and one head large."""
        import numpy as np

        from gptloom.interpret.views import view_attention
        from gptloom.plots.inspect import draw_attention, draw_head

        view = view_attention(reading)
        if view.is_mean:
            self.notes.append("this model averages: its attention weights are equal by construction, not learned")
        layer, head = _chosen_head(view, layer, head)
        if view.size <= MOST_WEIGHTS:
            self.values["attention"] = [np.round(one.astype(np.float64), 4).tolist() for one in view.weights]
        else:
            reason = f"because there are more than {MOST_WEIGHTS:,}; give a shorter text"
            self.notes.append(f"inspect.json does not contain the attention weights, {reason}")
        title = f"{self.name}: where each head looks"
        draw_attention(self.path("attention.png"), view.weights, view.texts, title=title)
        title = f"{self.name}: layer {layer}, head {head}"
        draw_head(self.path(f"head-{layer}-{head}.png"), view.weights[layer][head], view.texts, title=title)

    def _lens(self, reading: Reading, top: int) -> None:
        """Draw the predictions after each layer."""
        from gptloom.interpret.views import view_lens
        from gptloom.plots.inspect import draw_lens

        view = view_lens(reading, top=top)
        rows = [
            [{"entropy": round(one.entropy, 4), "alternatives": _alternatives(one.alternatives)} for one in row]
            for row in view.guesses
        ]
        self.values["lens"] = [{"after": name, "positions": row} for name, row in zip(view.names, rows, strict=True)]
        best = [[(one.alternatives[0].text, one.alternatives[0].probability) for one in row] for row in view.guesses]
        following = [*view.texts[1:], None]
        title = f"{self.name}: what each layer would say comes next"
        draw_lens(self.path("lens.png"), best, view.texts, following, view.names, title=title)

    def _tokens(self, reading: Reading, top: int) -> None:
        """Write the page of the tokens with their losses."""
        from gptloom.interpret.views import view_tokens

        if not reading.bundle.task.causal:
            both = "each token is predicted from both sides, with only that token hidden"
            self.notes.append(f"{both}; these losses are not comparable with those of a decoder")
        view = view_tokens(reading, top=top)
        self.values |= {"loss": view.loss, "perplexity": view.perplexity, "bpb": view.bpb}
        self.values["tokens"] = [
            {
                "id": one.id,
                "text": one.text,
                "loss": None if one.loss is None else round(one.loss, 6),
                "logprob": None if one.logprob is None else round(one.logprob, 6),
                "rank": one.rank,
                "alternatives": _alternatives(one.alternatives),
            }
            for one in view.tokens
        ]
        bits = "" if view.bpb is None else f", {view.bpb:.4f} bits per byte"
        losses = f"loss {view.loss:.4f} nats per token, perplexity {view.perplexity:.3f}{bits}"
        self._page(view.tokens, f"{self.name}: the loss of each token", f"{losses} ({view.predicted:,} tokens)")

    def _page(self, tokens: Sequence[ScoredToken], title: str, summary: str) -> None:
        from gptloom.plots.core import TokenView, tokens_page

        self.summary = summary
        self.tokens = [
            TokenView(
                one.text, one.loss, one.rank, tuple((other.text, other.probability) for other in one.alternatives)
            )
            for one in tokens
        ]
        page = tokens_page(self.tokens, title=title, summary=summary, notes=self.notes)
        self.path("tokens.html").write_text(page, encoding="utf-8")

    def _embedding(self, reading: Reading) -> None:
        """Draw the token table, projected onto a plane."""
        from gptloom.interpret.views import view_embedding
        from gptloom.plots.inspect import draw_embedding

        view = view_embedding(reading)
        points = [
            {"id": one, "text": text, "x": round(x, 4), "y": round(y, 4)}
            for one, (text, (x, y)) in enumerate(zip(view.texts, view.points.tolist(), strict=True))
        ]
        self.values["embedding"] = {"shares": [round(share, 6) for share in view.shares[:10]], "points": points}
        shares, title = (view.shares[0], sum(view.shares[1:2])), f"{self.name}: the token table"
        path = self.path("embedding.png")
        draw_embedding(path, view.points, view.texts, shares, marked=view.marked, title=title)

    def _statistics(self, reading: Reading) -> None:
        """Draw the sizes of activations and gradients."""
        from gptloom.interpret.views import view_statistics
        from gptloom.plots.statistics import draw_statistics

        view = view_statistics(reading)
        found = view.vitals
        self.values["statistics"] = asdict(found)
        draw_statistics(
            self.path("statistics.png"),
            stream=found.stream,
            branches=found.branches,
            hidden=[(one.name, one.off, one.dead) for one in found.hidden],
            entropy=found.attention_entropy,
            uniform=view.uniform,
            parameters=[(one.name, one.weight_rms, one.gradient_rms) for one in found.parameters if len(one.shape) > 1],
            title=f"{self.name} on this text, loss {found.loss:.3f}",
        )

    def _distance(self, reading: Reading) -> None:
        """Draw the gradient against the distance."""
        from gptloom.interpret.views import view_distance
        from gptloom.plots.inspect import draw_gradient_by_distance

        view = view_distance(reading)
        self.values["distance"] = {"distance": view.distances, "gradient": view.gradients}
        if view.nothing is not None:
            self.missing["distance"] = view.nothing
            return
        curves, title = {self.name: (view.distances, view.gradients)}, "how far back the loss depends on the text"
        draw_gradient_by_distance(self.path("distance.png"), curves, title=f"{self.name}: {title}")

    def write_alignment(self, view: Alignment, *, layer: int | None, head: int | None) -> None:
        """Write all views of a translation."""
        import numpy as np

        from gptloom.plots.inspect import draw_alignment, draw_attention

        self.values |= {
            "translation": view.translation,
            "source": view.sources,
            "tokens": [_target(one) for one in view.tokens],
            "alignment_layer": view.layer,
            "alignment": np.round(view.mean.astype(np.float64), 4).tolist(),
            "cross": np.round(view.cross.astype(np.float64), 4).tolist(),
        }
        texts = (view.sources, view.targets)
        title = f"{view.source}: what each written token looked at (layer {view.layer})"
        draw_alignment(self.path("alignment.png"), view.mean, *texts, title=title)
        for at, weights in enumerate(view.cross):
            for number, one in enumerate(weights):
                if (layer, head) in ((at, number), (at, None), (None, number)):
                    title = f"{view.source}: layer {at}, head {number} of the cross-attention"
                    draw_alignment(self.path(f"alignment-{at}-{number}.png"), one, *texts, title=title)
        title = f"{self.name}: where the encoder's heads look"
        draw_attention(self.path("reading.png"), view.encoder, view.sources, title=title)
        summary = f"{view.source} -> {view.translation}"
        self._page(view.tokens, f"{self.name}: the loss of each written token", summary)

    def report(self, *, as_json: bool) -> None:
        """Write inspect.json; print the notes, the tokens and the paths."""
        path = self.path("inspect.json")
        text = to_json(self.values)
        path.write_text(text + "\n", encoding="utf-8")
        for note in [*self.notes, *(f"no {view} view: {reason}" for view, reason in self.missing.items())]:
            print(f"note: {note}", file=sys.stderr)
        if as_json:
            print(text)
            return
        if self.tokens:
            from gptloom.cli.terminal import colored, table, wants_color

            if wants_color():
                print(colored(self.tokens) + "\n")
            print("\n".join(table(self.tokens)))
            print(self.summary + "\n")
        print("\n".join(self.files.values()))


def _chosen_head(view: AttentionView, layer: int | None, head: int | None) -> tuple[int, int]:
    """Return (layer, head) to draw large; without --layer and --head, the head that looks at other tokens most."""
    _check_number(layer, len(view.points), "layer")
    for heads in view.points if layer is None else [view.points[layer]]:
        _check_number(head, len(heads), "head")
    return view.most_pointed(layer, head)


def _check_number(number: int | None, count: int, what: str) -> None:
    if number is not None and not 0 <= number < count:
        cure = f"choose 0 to {count - 1}" if count > 1 else f"the only {what} is 0"
        raise ConfigError(f"there is no {what} {number}", where=f"--{what}", cure=cure)


def _alternatives(alternatives: Sequence[Alternative]) -> list[dict[str, Any]]:
    return [{"id": one.id, "text": one.text, "logprob": round(one.logprob, 6)} for one in alternatives]


def _target(token: ScoredToken) -> dict[str, Any]:
    """Return a token of a translation as JSON values."""
    others = [{"id": one.id, "logprob": round(one.logprob, 6)} for one in token.alternatives]
    found = {"id": token.id, "text": token.text, "logprob": round(token.logprob or 0.0, 6)}
    return found | {"rank": token.rank, "alternatives": others}
