"""How many parameters and tokens make the best of a number of operations, by what has been published."""

from dataclasses import dataclass

RULE = 20.0
"""Tokens a parameter, about what Hoffmann et al. 2022 (table 3) find best at all budgets by their first two approaches."""

FITTED = 70e6, 16e9
"""Parameters of the smallest and the largest model that Hoffmann et al. 2022 trained."""

CAVEAT = "of models of 70M to 16B parameters, for web text in their own tokens, in nats a token; for other text and tokens the loss is another"


@dataclass(frozen=True)
class Fit:
    """loss = e + a / parameters^alpha + b / tokens^beta (Hoffmann et al. 2022, section 3.3, approach 3).

    Attributes:
        name: in a few words.
        source: where its numbers are published.
        e: what no model gets below.
        a: what is lost to the model's size.
        b: what is lost to the number of tokens.
        alpha: how fast the first falls.
        beta: how fast the second does.
    """

    name: str
    source: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float | int, tokens: float | int) -> float:
        """Nats a token."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def best(self, operations: float | int) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss where 6 times their product is `operations` (equation 4 of the paper)."""
        whole = self.alpha + self.beta
        balance = (self.alpha * self.a / (self.beta * self.b)) ** (1 / whole)
        parameters = balance * (operations / 6) ** (self.beta / whole)
        return parameters, operations / 6 / parameters


FITS = (
    Fit("approach 3", "Hoffmann et al. 2022, equation 10", 1.69, 406.4, 410.7, 0.34, 0.28),
    Fit("approach 3, refitted", "Besiroglu et al. 2024, section 3", 1.8172, 482.01, 2085.43, 0.3478, 0.3658),
)


@dataclass(frozen=True)
class Best:
    """What one source finds best."""

    name: str
    source: str
    parameters: float
    tokens: float


def compute_optimal(operations: float | int) -> list[Best]:
    """By the rule of 20 tokens a parameter, and by both fits; operations are 6 times parameters times tokens."""
    rule = (operations / (6 * RULE)) ** 0.5
    return [
        Best("20 tokens a parameter", "Hoffmann et al. 2022, table 3", rule, RULE * rule),
        *(Best(fit.name, fit.source, *fit.best(operations)) for fit in FITS),
    ]


def within_the_fit(parameters: float | int) -> bool:
    """Whether models of this size were among those that the fits describe."""
    return FITTED[0] <= parameters <= FITTED[1]
