import re
from collections import Counter
from random import Random

import pytest
from starter_models.backgrounds import Background
from starter_models.captions import Facts, Thing, count_things, describe, describe_part, label_query, relation_word
from starter_models.labels import BACKGROUND_COLOURS, BACKGROUND_KINDS, BY_NAME, LABELS
from starter_models.queries import label_queries, scene_queries

_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
_PHRASES = sorted(
    ((phrase, label.name) for label in LABELS for pair in label.words for phrase in pair),
    key=lambda item: -len(item[0]),
)


def named(text: str) -> Counter[str]:
    """Read labels and their counts back from a caption, longest words first ("teddy bear" before "bear")."""
    text = re.split(r" (?:on|in front of|against) (?=an? [a-z ]*background)", text)[0]
    text = re.sub(r"^(?:a picture of|a photo of|an image of|a scene with|this is|show me) ", "", text)
    found: Counter[str] = Counter()
    for phrase, label in _PHRASES:
        pattern = rf"(?:(\w+) )?(?:(?:red|yellow|green|blue|purple) )?\b{re.escape(phrase)}\b"
        for match in re.finditer(pattern, text):
            found[label] += _NUMBERS.get(match.group(1) or "", 1)
        text = re.sub(pattern, "#", text)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_descriptions_name_exactly_the_objects_that_are_there(facts: list[Facts], seed: int) -> None:
    for scene in facts:
        text = describe(scene, Random(seed)).text
        assert named(text) == Counter(thing.label for thing in scene.things), text


def test_descriptions_tell_the_background_when_asked(facts: list[Facts]) -> None:
    for scene in facts:
        assert f"{scene.background.colour} background" in describe(scene, Random(0), background=True).text
        assert "background" not in describe(scene, Random(0), background=False).text


def test_captions_fit_their_own_scene(facts: list[Facts]) -> None:
    rng = Random(5)
    for scene in facts:
        assert describe(scene, rng).fits(scene)
        assert describe_part(scene, rng).fits(scene)


def test_a_caption_fits_no_scene_that_lacks_something(facts: list[Facts]) -> None:
    rng = Random(5)
    for scene in facts:
        caption = describe(scene, rng, background=True)
        other = next(colour for colour in BACKGROUND_COLOURS if colour != scene.background.colour)
        assert not caption.fits(Facts(scene.width, scene.height, scene.things[1:], scene.background))
        assert not caption.fits(
            Facts(scene.width, scene.height, scene.things, Background(other, scene.background.kind))
        )


def test_words_for_places_follow_the_boxes() -> None:
    dog, bus = Thing("dog", None, (0, 40, 20, 60)), Thing("bus", "red", (70, 42, 95, 62))
    scene = Facts(100, 100, (dog, bus), Background("green", "plain"))

    assert relation_word(scene, dog, bus) == "to the left of"
    assert relation_word(scene, bus, dog) == "to the right of"
    high = Thing("cat", None, (0, 0, 20, 20))
    assert relation_word(scene, high, dog) == "above"
    assert relation_word(scene, dog, high) == "below"
    assert relation_word(scene, dog, Thing("cat", None, (4, 44, 24, 64))) is None


def test_repeats_are_counted_and_colours_told() -> None:
    box = (0, 0, 10, 10)
    scene = Facts(
        100,
        100,
        (Thing("dog", None, box), Thing("bus", "red", box), Thing("dog", None, box)),
        Background("green", "plain"),
    )
    texts = {describe(scene, Random(seed), background=True, places=False).text for seed in range(200)}

    assert "two dogs and a red bus on a green background" in texts
    assert count_things(scene.things) == {"dog": 2, "bus": 1, ("bus", "red"): 1}


@pytest.mark.parametrize(
    ("label", "text"), [("dog", "a dog"), ("umbrella", "an umbrella"), ("scissors", "a pair of scissors")]
)
def test_label_queries_are_plain_english(label: str, text: str) -> None:
    assert label_query(label).text == text


def test_every_kind_of_background_has_a_word() -> None:
    assert all(BACKGROUND_KINDS.values())
    assert len(BY_NAME) == len(LABELS)


def test_scene_queries_have_their_scene_as_the_answer(facts: list[Facts]) -> None:
    queries = scene_queries(facts)

    assert [query.answers for query in queries] == [(place,) for place in range(len(facts))]
    for query, scene in zip(queries, facts, strict=True):
        assert named(query.text) == Counter(thing.label for thing in scene.things)
        assert scene.background.colour in query.text
    assert len({query.text for query in queries}) == len(queries)


def test_label_queries_have_all_scenes_with_the_label_as_answers(facts: list[Facts]) -> None:
    queries = label_queries(facts, min_answers=3)

    assert queries
    for query in queries:
        (label,) = named(query.text)
        holding = {place for place, scene in enumerate(facts) if any(thing.label == label for thing in scene.things)}
        assert set(query.answers) == holding
        assert len(holding) >= 3
