"""The rollout page in a real browser: what it shows, filters and finds, and how it fits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.browser import Browser, Page, open_browser
from helpers.sample_rollouts import HEADER, batch, write_log
from podsrl.runs.rollout_log import FILE_NAME, RolloutLog
from podsrl.view.page import view_page

HOSTILE = "</script><img src=x onerror=\"document.title='run'\"><b id=evil>bold</b> {{data}} \u2028"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as running:
        yield running


def open_view(browser: Browser, folder: Path, *, width: int = 1280, **options: Any) -> Page:
    """The page of the folder's log, opened."""
    path = folder / "view.html"
    path.write_text(view_page(folder), encoding="utf-8")
    return browser.open(path, width=width, **options)


def cards(page: Page, column: str) -> int:
    return page.evaluate(f"document.querySelectorAll('#{column} .card').length")


def set_field(page: Page, field: str, value: str) -> None:
    """Set a filter as a person would, and wait until the page has followed."""
    page.evaluate(
        f"byId({field!r}).value = {value!r};"
        f"for (const kind of ['input', 'change']) byId({field!r}).dispatchEvent(new Event(kind));"
        "new Promise((done) => setTimeout(done, REDRAW_MS + 30))"
    )


def press(page: Page, key: str) -> None:
    event = f"new KeyboardEvent('keydown', {{key: {key!r}, bubbles: true}})"
    page.evaluate(f"document.body.dispatchEvent({event})")


def place(page: Page) -> str:
    return page.evaluate("byId('place').textContent")


def test_every_prompt_shows_m_kept_and_the_rest_dropped(browser: Browser, tmp_path: Path) -> None:
    """3 steps of 2 prompts, n = 16, m = 4; the arrow keys walk through all six."""
    page = open_view(browser, write_log(tmp_path, prompts=2))
    seen = []
    for _ in range(6):
        assert (cards(page, "kept"), cards(page, "dropped")) == (4, 12)
        seen.append(place(page))
        press(page, "ArrowRight")
    assert seen == [f"Step {step}, prompt {prompt}" for step in (1, 2, 3) for prompt in (1, 2)]
    assert place(page) == seen[-1]  # the last one stays
    press(page, "ArrowLeft")
    assert place(page) == seen[-2]
    assert page.errors == []


def test_a_card_says_what_the_log_says(browser: Browser, tmp_path: Path) -> None:
    """Rewards 0, 1 and 3 and one without; kept are 0 and 3, lowest and highest."""
    log = RolloutLog(tmp_path / FILE_NAME, {"reward_names": ["right", "form"]})
    record = {
        "question": "What is 2 + 2?",
        "answer": "4",
        "rewards": [0.0, 1.0, 3.0, None],
        "parts": [[0.0, 1.0, 2.5, None], [0.0, 0.0, 0.5, 1.0]],
        "num_tokens": [5, 6, 7, 1234],
        "kept": [1, 0, 1, 0],
        "why": ["lowest", "dropped", "highest", "no_reward"],
        "advantages": [-0.70711, None, 0.70711, None],
        "texts": ["zero", "", "three", "none at all"],
    }
    log.write(1, [record])
    page = open_view(browser, tmp_path)
    text = page.evaluate("[...document.querySelectorAll('#kept .card')].map((c) => c.innerText)")
    assert [" ".join(card.split()) for card in text] == [
        "3 ▲ highest #3 right 2.5 form 0.5 tokens 7 advantage +0.7071 three",
        "0 ▼ lowest #1 right 0 form 0 tokens 5 advantage -0.7071 zero",
    ]
    text = page.evaluate(  # not innerText: they are folded
        "[...document.querySelectorAll('#dropped .card')].map((card) =>"
        " [...card.querySelectorAll('span, dt, dd, .text')].map((e) => e.textContent).join(' '))"
    )
    assert [" ".join(card.split()) for card in text] == [
        "1 · dropped #2 right 1 form 0 tokens 6 empty",
        "none ∅ no reward #4 right none form 1 tokens 1,234 none at all",
    ]
    assert page.evaluate("byId('answer').textContent") == "Answer: 4"
    histogram = page.evaluate("document.querySelector('#histogram svg').getAttribute('aria-label')")
    assert histogram == (
        "0: 1 kept, 0 dropped; 1: 0 kept, 1 dropped; 3: 1 kept, 0 dropped; none: 0 kept, 1 dropped"
    )
    assert page.evaluate("byId('means').textContent") == "mean 1.3333, of the kept 1.5"  # 4/3, 3/2


def test_the_head_says_how_questions_were_put(browser: Browser, tmp_path: Path) -> None:
    prompts = {"system_prompt": "", "prompt_template": "{question} now", "answer_format": "number"}
    log = RolloutLog(tmp_path / FILE_NAME, HEADER | prompts)
    log.write(1, batch(1, prompts=1))
    about = open_view(browser, tmp_path).evaluate("byId('about').textContent")
    assert "arithmetic · system prompt: none · template: {question} now · answers: number" in about
    (plain_folder := tmp_path / "plain").mkdir()
    plain = open_view(browser, write_log(plain_folder)).evaluate("byId('about').textContent")
    assert "prompt:" not in plain and "template:" not in plain


def test_what_the_model_did_not_write_is_shaded(browser: Browser, tmp_path: Path) -> None:
    """Two turns with an answer between, which a character of two UTF-16 units stands before."""
    log = RolloutLog(tmp_path / FILE_NAME, {"reward_names": ["right"]})
    record = {
        "question": "Find it.",
        "rewards": [1.0, 0.0],
        "parts": [[1.0, 0.0]],
        "num_tokens": [4, 2],
        "kept": [1, 1],
        "why": ["all", "all"],
        "advantages": [1.0, -1.0],
        "texts": ["guess 😀3\nhigher\n> guess 4", "nothing"],
        "given": [[[8, 18]], []],
    }
    log.write(1, [record])
    page = open_view(browser, tmp_path)
    shaded = "[...document.querySelectorAll('#kept .given')].map((e) => e.textContent)"
    assert page.evaluate(shaded) == ["higher\n> "]
    texts = page.evaluate("[...document.querySelectorAll('#kept .text')].map((e) => e.textContent)")
    assert texts == ["guess 😀3higher\n> guess 4", "nothing"]
    facts = page.evaluate("[...document.querySelectorAll('#kept .facts')].map((e) => e.innerText)")
    assert [" ".join(each.split()).rpartition(" turns ")[2] for each in facts] == ["2", "1"]
    set_field(page, "search", "higher")
    marked = page.evaluate(
        "[...document.querySelectorAll('.given mark')].map((m) => m.textContent)"
    )
    assert marked == ["higher"] and page.errors == []


def test_filters_leave_what_passes(browser: Browser, tmp_path: Path) -> None:
    page = open_view(browser, write_log(tmp_path))
    set_field(page, "show", "kept")
    assert (cards(page, "kept"), cards(page, "dropped")) == (4, 0)
    assert page.evaluate("byId('found').textContent") == "48 rollouts in 12 prompts"  # 12 x 4
    set_field(page, "show", "all")
    set_field(page, "low", "1")
    rewards = page.evaluate("[...document.querySelectorAll('.reward')].map((r) => +r.textContent)")
    assert 0 < len(rewards) < 16 and min(rewards) >= 1
    set_field(page, "low", "")
    set_field(page, "first", "3")
    assert place(page) == "Step 3, prompt 1"
    assert page.evaluate("byId('previous').disabled") is True
    page.evaluate("byId('clear').click()")
    assert cards(page, "kept") + cards(page, "dropped") == 16
    assert page.evaluate("byId('previous').disabled") is False
    set_field(page, "why", "dropped")
    assert (cards(page, "kept"), cards(page, "dropped")) == (0, 12)
    set_field(page, "low", "1000")
    assert page.evaluate("byId('found').textContent").startswith("Nothing matches")
    assert page.errors == []


def test_the_search_finds_texts_and_prompts(browser: Browser, tmp_path: Path) -> None:
    """One completion of one prompt holds the word; the arrows then go nowhere else."""
    log = RolloutLog(tmp_path / FILE_NAME, HEADER)
    for step in (1, 2, 3):
        records = batch(step)
        if step == 2:
            records[1]["texts"][5] = "it is FORTY (4*10) two"
        log.write(step, records)
    page = open_view(browser, tmp_path)
    set_field(page, "search", "forty (4*")
    assert place(page) == "Step 2, prompt 2"
    assert cards(page, "kept") + cards(page, "dropped") == 1
    marked = page.evaluate("[...document.querySelectorAll('mark')].map((m) => m.textContent)")
    assert marked == ["FORTY (4*"]
    assert page.evaluate("byId('next').disabled && byId('previous').disabled") is True
    set_field(page, "scope", "prompts")
    assert page.evaluate("byId('found').textContent").startswith("Nothing matches")
    set_field(page, "search", "is 3 + 2")
    assert place(page) == "Step 3, prompt 3"
    assert cards(page, "kept") + cards(page, "dropped") == 16
    assert page.errors == []


def test_what_a_model_wrote_is_text(browser: Browser, tmp_path: Path) -> None:
    log = RolloutLog(
        tmp_path / FILE_NAME, {**HEADER, "task": HOSTILE, "reward_names": [HOSTILE] * 2}
    )
    record = {**batch(1)[0], "question": HOSTILE, "answer": HOSTILE, "texts": [HOSTILE] * 16}
    log.write(1, [record])
    page = open_view(browser, tmp_path)
    set_field(page, "search", "onerror")
    assert cards(page, "kept") + cards(page, "dropped") == 16
    shown = page.evaluate("document.querySelector('#kept .text').textContent")
    assert shown == HOSTILE == page.evaluate("byId('question').textContent")
    assert page.evaluate("document.querySelectorAll('img, #evil').length") == 0
    assert page.evaluate("document.title").startswith("Rollouts of")
    assert page.errors == []


@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]
)
def test_it_fits_phone_and_desktop_in_both_schemes(
    browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    folder = write_log(tmp_path / ("long-name" * 9), steps=1, num_words=150)
    log = RolloutLog(folder / FILE_NAME, HEADER)
    long_word = {**batch(2)[0], "texts": ["x" * 3000] * 16, "question": "y" * 500}
    log.write(2, [long_word])
    page = open_view(browser, folder, width=width, scheme=scheme)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("go(groups.length - 1)")
    kept, dropped = (
        page.evaluate(f"byId('{column}').getBoundingClientRect().toJSON()")
        for column in ("kept", "dropped")
    )
    side_by_side = kept["right"] <= dropped["left"]
    assert side_by_side == (width == 1280)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(18, 21, 25)") == (scheme == "dark")
    assert page.screenshot(tmp_path / "page.png").stat().st_size > 10_000
    assert page.errors == []


def test_long_texts_unfold(browser: Browser, tmp_path: Path) -> None:
    page = open_view(browser, write_log(tmp_path, steps=1, prompts=1, num_words=400))
    height = "document.querySelector('#kept .text').clientHeight"
    folded = page.evaluate(height)
    page.evaluate("document.querySelector('#kept .more').click()")
    assert page.evaluate(height) > 1.2 * folded
    assert page.evaluate("document.querySelector('#kept .more').textContent") == "Show less"


def test_prompts_have_addresses_and_controls_names(browser: Browser, tmp_path: Path) -> None:
    page = open_view(browser, write_log(tmp_path))
    page.evaluate("location.hash = '#step-2-prompt-3'; new Promise((d) => setTimeout(d, 50))")
    assert place(page) == "Step 2, prompt 3"
    press(page, "ArrowRight")
    page.evaluate("new Promise((done) => setTimeout(done, ADDRESS_MS + 50))")
    assert page.evaluate("location.hash") == "#step-2-prompt-4"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button')].filter((e) =>"
        " !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).length"
    )
    assert unnamed == 0


def test_dropped_rollouts_are_folded_until_asked_for(browser: Browser, tmp_path: Path) -> None:
    """A search opens them, as what it finds may be there; steps have a line of each kind."""
    page = open_view(browser, write_log(tmp_path))
    assert page.evaluate("byId('dropped-fold').open") is False
    set_field(page, "search", "carry")
    assert page.evaluate("byId('dropped-fold').open") is True
    captions = page.evaluate(
        "[...document.querySelectorAll('#over-steps figcaption')].map((e) => e.textContent).join()"
    )
    assert captions.startswith("Mean reward from ") and "Share kept from 25 % to 25 %" in captions
    assert "Dead groups" in captions and page.errors == []


def test_two_thousand_rollouts_stay_quick(browser: Browser, tmp_path: Path) -> None:
    """2,048 rollouts of about 1,200 characters: one prompt is drawn, 64 cards, whatever is found.

    A search or a step takes 0.05 to 0.1 s; the bound leaves room for a busy machine.
    """
    page = open_view(browser, write_log(tmp_path, steps=8, n=64, m=16, num_words=250))
    assert page.evaluate("groups.length * 64") == 2048
    for action in ("byId('search').value = 'carry one'; applyFilters()", "go(current + 1)"):
        milliseconds = page.evaluate(
            f"(() => {{ const start = performance.now(); {action};"
            " document.body.offsetHeight; return performance.now() - start; })()"
        )
        assert milliseconds < 3000
        assert cards(page, "kept") + cards(page, "dropped") <= 64
    assert page.errors == []
