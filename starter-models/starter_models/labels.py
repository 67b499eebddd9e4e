"""The labels scenes are made of: COCO's names where COCO has one, with the glyph and the words for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """One kind of object.

    Attributes:
        name: the label in every truth file, singular; COCO's name where there is one.
        glyph: the one code point that draws it.
        words: (singular, plural) pairs that captions use; the first is the usual one.
        colours: the colours it is drawn in; empty when it keeps the font's own.
    """

    name: str
    glyph: str
    words: tuple[tuple[str, str], ...]
    colours: tuple[str, ...] = ()


PAINTS = ("red", "yellow", "green", "blue", "purple")


def _label(name: str, code: int, plural: str = "", *, also: tuple[str, ...] = (), painted: bool = False) -> Label:
    """Build a label; ``also`` holds other words as "singular/plural"."""
    pairs = [(name, plural or f"{name}s")]
    for other in also:
        singular, _, many = other.partition("/")
        pairs.append((singular, many or f"{singular}s"))
    return Label(name, chr(code), tuple(pairs), PAINTS if painted else ())


LABELS: tuple[Label, ...] = (
    _label("person", 0x1F9CD, "people", also=("man/men", "human")),
    _label("bicycle", 0x1F6B2, also=("bike",)),
    _label("car", 0x1F697, also=("automobile",), painted=True),
    _label("motorcycle", 0x1F3CD, also=("motorbike",)),
    _label("airplane", 0x2708, also=("plane", "aeroplane")),
    _label("bus", 0x1F68C, "buses", painted=True),
    _label("train", 0x1F686),
    _label("truck", 0x1F69A, also=("lorry/lorries",), painted=True),
    _label("boat", 0x26F5, also=("sailboat",)),
    _label("traffic light", 0x1F6A6),
    _label("stop sign", 0x1F6D1),
    _label("bird", 0x1F426),
    _label("cat", 0x1F408, also=("kitten",)),
    _label("dog", 0x1F415, also=("puppy/puppies",)),
    _label("horse", 0x1F40E, also=("pony/ponies",)),
    _label("sheep", 0x1F411, "sheep"),
    _label("cow", 0x1F404),
    _label("elephant", 0x1F418),
    _label("bear", 0x1F43B),
    _label("zebra", 0x1F993),
    _label("giraffe", 0x1F992),
    _label("backpack", 0x1F392, also=("rucksack",)),
    _label("umbrella", 0x2602, painted=True),
    _label("handbag", 0x1F45C, also=("purse",)),
    _label("tie", 0x1F454, also=("necktie",)),
    _label("suitcase", 0x1F9F3),
    _label("frisbee", 0x1F94F),
    _label("skis", 0x1F3BF, "pairs of skis"),
    _label("sports ball", 0x26BD, also=("football", "soccer ball")),
    _label("kite", 0x1FA81),
    _label("skateboard", 0x1F6F9),
    _label("bottle", 0x1F37E),
    _label("wine glass", 0x1F377, "wine glasses", also=("glass of wine/glasses of wine",)),
    _label("cup", 0x2615, also=("cup of coffee/cups of coffee",)),
    _label("knife", 0x1F52A, "knives"),
    _label("spoon", 0x1F944),
    _label("bowl", 0x1F963),
    _label("banana", 0x1F34C),
    _label("apple", 0x1F34E),
    _label("sandwich", 0x1F96A, "sandwiches"),
    _label("orange", 0x1F34A),
    _label("broccoli", 0x1F966, "pieces of broccoli"),
    _label("carrot", 0x1F955),
    _label("hot dog", 0x1F32D),
    _label("pizza", 0x1F355, also=("slice of pizza/slices of pizza",)),
    _label("donut", 0x1F369, also=("doughnut",)),
    _label("cake", 0x1F382, also=("birthday cake",)),
    _label("chair", 0x1FA91),
    _label("couch", 0x1F6CB, "couches", also=("sofa",)),
    _label("potted plant", 0x1FAB4, also=("plant in a pot/plants in pots",)),
    _label("toilet", 0x1F6BD),
    _label("tv", 0x1F4FA, also=("television",)),
    _label("laptop", 0x1F4BB, also=("computer",)),
    _label("cell phone", 0x1F4F1, also=("mobile phone", "phone")),
    _label("clock", 0x23F0, also=("alarm clock",)),
    _label("book", 0x1F4D5, painted=True),
    _label("vase", 0x1F3FA),
    _label("scissors", 0x2702, "pairs of scissors"),
    _label("teddy bear", 0x1F9F8),
    _label("toothbrush", 0x1FAA5, "toothbrushes"),
    _label("tree", 0x1F333),
    _label("house", 0x1F3E0, also=("home",)),
    _label("heart", 0x2764, painted=True),
    _label("star", 0x2B50),
    _label("sunflower", 0x1F33B),
    _label("rose", 0x1F339),
    _label("mushroom", 0x1F344),
    _label("fish", 0x1F41F, "fish"),
    _label("frog", 0x1F438),
    _label("butterfly", 0x1F98B, "butterflies"),
    _label("owl", 0x1F989),
    _label("penguin", 0x1F427),
    _label("tiger", 0x1F405),
    _label("pig", 0x1F416),
    _label("snail", 0x1F40C),
    _label("guitar", 0x1F3B8),
    _label("key", 0x1F511),
    _label("camera", 0x1F4F7),
    _label("rocket", 0x1F680),
    _label("balloon", 0x1F388, painted=True),
    _label("top hat", 0x1F3A9),
    _label("crown", 0x1F451),
    _label("gift", 0x1F381, also=("present",)),
    _label("light bulb", 0x1F4A1),
)

BY_NAME: dict[str, Label] = {label.name: label for label in LABELS}
LABEL_INDEX: dict[str, int] = {label.name: number for number, label in enumerate(LABELS)}

#: Background colours with the centre of each in HSV: hue in degrees, saturation and value in 0–1.
BACKGROUND_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 0.80, 0.80),
    "orange": (28, 0.88, 0.95),
    "yellow": (54, 0.72, 0.97),
    "green": (125, 0.62, 0.62),
    "teal": (178, 0.70, 0.66),
    "blue": (218, 0.72, 0.82),
    "purple": (276, 0.60, 0.66),
    "pink": (332, 0.38, 0.98),
    "brown": (24, 0.62, 0.42),
    "gray": (0, 0.0, 0.55),
    "black": (0, 0.0, 0.09),
    "white": (0, 0.0, 0.97),
}
#: Background kinds with the adjectives that captions use.
BACKGROUND_KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain",),
    "gradient": ("gradient", "shaded"),
    "stripes": ("striped",),
    "noise": ("noisy", "grainy"),
    "blobs": ("spotted", "blotchy"),
    "blurred": ("blurred", "blurry"),
}
