"""Train every step of the lecture on the same text, with the same number of tokens; count the counted ones.

A round trains all steps with one seed, so the table is complete after each round. Results are stored in the ladder's
folder, and an interrupted ladder can continue from there.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptloom.config.load import merge, parse
from gptloom.config.run import DataConfig, LadderConfig, SampleConfig
from gptloom.data.sources import DATASETS
from gptloom.devices import derive
from gptloom.errors import ConfigError, InputError
from gptloom.studies.ladder.lessons import (
    CURE,
    LECTURE_STEPS,
    WINDOW,
    Lesson,
    Plan,
    Rung,
    RungStore,
    Watch,
    choose_lessons,
    configure_lesson,
    fingerprint,
)
from gptloom.studies.ladder.neighbours import NGram
from gptloom.studies.trial import Material, Pace, affordable_tokens, open_material, rehearse, run_trial
from gptloom.training.progress import duration
from gptloom.training.run_dir import next_folder

SEEDS = 2
"""Default number of trainings of each step: two show a range, which one does not."""

MOST_SEEDS = 5
"""Largest number of trainings of each step, if the time is limited and no number of seeds is given."""

LEAST_TOKENS = 20 * WINDOW
"""Smallest number of training tokens of a step, regardless of the time."""

SAMPLE_TOKENS = 100

TELLING_TOKENS = WINDOW * LECTURE_STEPS // 10
"""With fewer training tokens, a step shows how training begins, and not what the step is good for."""

TELLING_VAL_TOKENS = 10_000
"""With fewer validation tokens, the loss depends on the passage more than on the step."""


@dataclass(frozen=True)
class Climbed:
    """A finished ladder.

    Attributes:
        folder: the folder of the results.
        text: the name of the text.
        lessons: the steps in order.
        rungs: the results by step, one for each seed.
        seeds: the number of rounds.
        tokens: the training tokens of each trained step.
        counted: the tokens that each counted step reads: the whole training split.
        source_text: whether text and tokenizer are those of the published numbers.
        caveats: reasons why the results say little, as sentences; usually none.
        texts: the texts of the command line, or those that the ladder in the folder began with.
        settings: the fields of `LadderConfig` that differ from their defaults.
    """

    folder: Path
    text: str
    lessons: list[Lesson]
    rungs: dict[str, list[Rung]]
    seeds: int
    tokens: int
    counted: int
    source_text: bool
    caveats: list[str]
    texts: list[str]
    settings: dict[str, Any]


def climb(texts: Sequence[str], given: Mapping[str, Any], run: Path | None, watch: Watch) -> Climbed:
    """Train all steps of a ladder, or continue a ladder.

    Args:
        texts: texts as for `gptloom train`; none means shakespeare, or the text that the ladder in `run` began with.
        given: the given fields of `LadderConfig`; a ladder that continues must have the same settings as before.
        run: the ladder's folder; by default a new one under runs/.
        watch: shows the progress.

    Raises:
        ConfigError: a setting or a step does not exist, or differs from that of the ladder in the folder.
        InputError: the text cannot be read, or has changed since the ladder began.
        DivergedError: a training's loss is no longer a number.
    """
    began = time.monotonic()
    store = RungStore(run or next_folder("ladder"))
    plan = store.read_plan()
    config = parse(LadderConfig, merge(plan.settings if plan else {}, given), where="the command line")
    if plan is not None:
        _check_same(plan, texts, config, store.folder)
    texts = list(texts) or (plan.texts if plan else ["shakespeare"])
    lessons = choose_lessons([name for name in (config.only or "").split(",") if name])
    material = open_material(texts, DataConfig(tokenizer=config.tokenizer))
    for note in material.notes:
        watch.say(f"note: {note}")
    ladder = _Ladder(config, lessons, material, store, watch, began)
    tokens = ladder.plan(texts, plan)
    try:
        rungs, seeds = ladder.climb(tokens)
    except KeyboardInterrupt:
        watch.say(f"interrupted; finished steps are kept: gptloom ladder --run {store.folder} continues")
        raise
    finally:
        watch.close()
    settings = config.model_dump(exclude_defaults=True)
    counted, source = len(material.parts.train), is_source(material)
    caveats = caveats_of(material, tokens)
    return Climbed(
        store.folder, material.name, lessons, rungs, seeds, tokens, counted, source, caveats, texts, settings
    )


def is_source(material: Material) -> bool:
    """Whether a text and its tokenizer are those of the published numbers: tiny Shakespeare, in characters."""
    return material.text_sha256 == DATASETS["shakespeare"].sha256 and material.tokenizer.kind == "char"


def caveats_of(material: Material, tokens: int) -> list[str]:
    """Reasons why a ladder says little: too few training tokens, or too short a text.

    Args:
        material: the text.
        tokens: the training tokens of each trained step.
    """
    found, lecture = [], WINDOW * LECTURE_STEPS
    if tokens < TELLING_TOKENS:
        found.append(
            f"{tokens:,} training tokens are {tokens / lecture:.1%} of the lecture's {lecture:,}: the losses show how "
            "training begins, and not which step is better; give --minutes or --steps more"
        )
    if (count := len(material.parts.val)) < TELLING_VAL_TOKENS:
        found.append(
            f"the validation split has {count:,} tokens: a loss on so few depends on the passage more than on the "
            "step; use a longer text"
        )
    return found


def _check_same(plan: Plan, texts: Sequence[str], config: LadderConfig, folder: Path) -> None:
    """Check that a ladder continues with the settings and the text that it began with.

    Raises:
        ConfigError: a setting or the text differs.
    """
    for key, new in config.model_dump().items():
        if plan.settings.get(key) != new:
            raise ConfigError(
                f"{key} was {plan.settings.get(key)} when the ladder began and cannot become {new}",
                where=str(folder),
                cure=CURE,
            )
    if texts and list(texts) != plan.texts:
        raise ConfigError(
            f"the ladder began with {' '.join(plan.texts)}, not with {' '.join(texts)}", where=str(folder), cure=CURE
        )


class _Ladder:
    """The steps, the text and the folder of one ladder."""

    def __init__(
        self,
        config: LadderConfig,
        lessons: list[Lesson],
        material: Material,
        store: RungStore,
        watch: Watch,
        began: float,
    ) -> None:
        self.config, self.lessons, self.material, self.store, self.watch = config, lessons, material, store, watch
        self.trained = [lesson for lesson in lessons if lesson.trains]
        self.paces: dict[str, Pace] = {}
        self.began, self.spent_before = began, store.spent()
        self.seconds = None if config.minutes is None else 60.0 * config.minutes

    def plan(self, texts: Sequence[str], plan: Plan | None) -> int:
        """Make and write a plan, or check the existing one; return the training tokens of each step."""
        if plan is not None and self._identity(plan.tokens) != plan.identity:
            raise InputError(
                "the text or the steps are not those that the ladder began with",
                where=str(self.store.folder),
                cure=CURE,
            )
        self.watch.say(f"ladder   {self.store.folder}: {len(self.lessons)} steps on {self.material.name}")
        if plan is not None:
            self.paces = plan.paces
            tokens: int = plan.tokens
        else:
            self._rehearse()
            tokens = self._budget()
            self.store.write_plan(
                Plan(list(texts), self.config.model_dump(), tokens, self._identity(tokens), self.paces)
            )
        self.watch.say(
            f"budget   {tokens:,} training tokens for each trained step; "
            f"a round of all steps takes about {duration(self._round(tokens))}"
        )
        for caveat in caveats_of(self.material, tokens):
            self.watch.say(f"WARNING: {caveat}")
        return tokens

    def climb(self, tokens: int) -> tuple[dict[str, list[Rung]], int]:
        """Train as many rounds as were asked for or as fit; return the results by step, and the number of rounds."""
        rungs: dict[str, list[Rung]] = {lesson.name: [] for lesson in self.lessons}
        most = self.config.seeds or (SEEDS if self.seconds is None else MOST_SEEDS)
        rounds = 0
        if self.seconds is None:
            self.watch.expect(most * self._round(tokens))
        while rounds < most and (rounds == 0 or self._fits(rounds, tokens)):
            if self.seconds is not None:
                self.watch.expect(self._round(tokens))
            for lesson in self.lessons:
                if lesson.trains or not rungs[lesson.name]:
                    rungs[lesson.name].append(self._rung(lesson, self.config.seed + rounds, tokens))
            rounds += 1
        return rungs, rounds

    def _rung(self, lesson: Lesson, seed: int, tokens: int) -> Rung:
        """The result of a step with a seed: read it from the folder, or train and store it."""
        label = f"{lesson.name}, seed {seed}" if lesson.trains else lesson.name
        rung = self.store.load(lesson.name, seed if lesson.trains else None)
        weight = self.paces[lesson.name].seconds(tokens) if lesson.trains else 0.0
        if rung is not None:
            self.watch.expect(-weight)
            return rung
        self.watch.begin(label, weight)
        rung = self._train(lesson, seed, tokens) if lesson.trains else self._count(lesson)
        self.store.keep(rung)
        self.watch.finish(
            f"{label:<26} validation loss {rung.val_loss:.4f}  {rung.parameters:>9,} parameters  {rung.seconds:6.1f} s"
        )
        return rung

    def _train(self, lesson: Lesson, seed: int, tokens: int) -> Rung:
        start = time.perf_counter()
        trial, bundle = run_trial(self._configure(lesson, tokens, seed), self.material, callbacks=[self.watch])
        sampling = SampleConfig(tokens=SAMPLE_TOKENS, temperature=1.0, seed=derive(seed, "sample"))
        sample = bundle.write("\n", sampling, on_unknown="skip")[0].text
        if seed == self.config.seed:
            bundle.save(self.store.model_folder(lesson.name))
        spent = time.perf_counter() - start
        return Rung(
            lesson.name,
            seed,
            trial.parameters,
            trial.steps,
            trial.tokens,
            trial.seconds,
            spent,
            trial.val_loss,
            trial.val_bpb,
            sample,
        )

    def _count(self, lesson: Lesson) -> Rung:
        start, parts, tokenizer = time.perf_counter(), self.material.parts, self.material.tokenizer
        model = NGram(parts.train.ids, tokenizer.vocab_size, lesson.counts or 0)
        seconds = time.perf_counter() - start
        score = model.score(parts.val.ids, self.material.val_bytes)
        prompt = tokenizer.encode("\n", "skip").tolist()[:1] or [0]
        sample = tokenizer.decode(model.write(prompt, SAMPLE_TOKENS, derive(self.config.seed, "sample")))
        spent = time.perf_counter() - start
        return Rung(
            lesson.name, None, model.parameters, 0, len(parts.train), seconds, spent, score.loss, score.bpb, sample
        )

    def _configure(self, lesson: Lesson, tokens: int, seed: int) -> Any:
        return configure_lesson(
            lesson, tokens=tokens, seed=seed, device=self.config.device, vocab_size=self.material.tokenizer.vocab_size
        )

    def _rehearse(self) -> None:
        # The first step is measured twice, for the first measurement includes modules that PyTorch loads late.
        for lesson in self.trained[:1] + self.trained:
            self.paces[lesson.name] = rehearse(self._configure(lesson, WINDOW, self.config.seed), self.material)

    def _identity(self, tokens: int) -> str:
        """A hash of the text, the tokenizer and all settings of all steps."""
        settings = [self._configure(lesson, tokens, self.config.seed).model_dump() for lesson in self.trained]
        names = [lesson.name for lesson in self.lessons]
        return fingerprint([self.material.text_sha256, self.material.tokenizer.fingerprint, tokens, names, settings])

    def _budget(self) -> int:
        """The training tokens of each step: the given number, the lecture's, or as many as fit into the time."""
        most = WINDOW * (self.config.steps or LECTURE_STEPS)
        if self.seconds is None or not self.trained:
            return most
        left = self.seconds - (time.monotonic() - self.began)
        tokens = affordable_tokens(self.paces, left / (self.config.seeds or SEEDS), most, LEAST_TOKENS)
        tokens -= tokens % (2 * WINDOW)  # whole batches of every step
        if tokens < most:
            self.watch.say(
                f"note: the lecture's {most:,} tokens a step do not fit into the time; every step gets {tokens:,}"
            )
        return tokens

    def _round(self, tokens: int) -> float:
        """Expected seconds of one round."""
        return sum((pace.seconds(tokens) for pace in self.paces.values()), 0.0)

    def _fits(self, rounds: int, tokens: int) -> bool:
        """Whether another round fits into the time, judged by the time of the first round."""
        seed = self.config.seed
        if self.seconds is None or all(self.store.load(lesson.name, seed + rounds) for lesson in self.trained):
            return True
        first = [rung for lesson in self.trained if (rung := self.store.load(lesson.name, seed)) is not None]
        todo = [rung for rung in first if self.store.load(rung.name, seed + rounds) is None]
        left = self.seconds - self.spent_before - (time.monotonic() - self.began)
        return sum(rung.spent for rung in todo) <= left
