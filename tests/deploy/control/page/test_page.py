"""The page in a real browser, against a served run."""

import re

import pytest

from deploy.control.run_status import AutoscalerStatus

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

NAMELESS = """() => [...document.querySelectorAll('button, input, [tabindex], [role=meter], [role=progressbar]')]
  .filter((node) => node.offsetParent !== null || node.tagName === 'svg')
  .filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length))
  .map((node) => node.outerHTML)"""


def test_the_page_shows_the_numbers_of_the_run(show_run, open_page):
    with show_run("dead") as served:
        page = open_page(served)
        expect(page.locator("#run")).to_have_text("demo")
        expect(page.locator("#state")).to_have_text("running")
        expect(page.locator("#progress-text")).to_have_text("update 37 of 200 · 19 %")
        expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "37")
        expect(page.locator(".reward .newest")).to_have_text(re.compile(r"\+1\.\d\d"))
        expect(page.get_by_text(re.compile("the workers work for .* % of that: add rollout workers"))).to_be_visible()
        expect(page.get_by_role("meter", name="Learner")).to_have_attribute("aria-valuenow", "62")
        expect(page.locator("#pool-rollout tbody tr")).to_have_count(4)
        expect(page.locator("#pool-rollout tbody tr").first).to_contain_text("starting")
        expect(page.locator("#pool-rollout .errors")).to_contain_text("worker-0: rollout worker-0 died in generate")
        expect(page.locator("#pool-rollout tbody tr").nth(1)).to_contain_text("403")
        expect(page.locator("#ledger")).to_contain_text("9,728")
        expect(page.locator("#events li").first).to_contain_text("11.3 nats per response")
        long = page.locator("#events details")
        expect(long.get_by_text("and the last")).to_be_hidden()
        long.locator("summary").click()
        expect(long.get_by_text("and the last")).to_be_visible()
        assert page.locator("#curve-kl line.mark.steered").count() == 2
        assert page.locator("#curve-kl line.mark.lost").count() == 2


def test_what_happens_is_shown_without_a_reload(show_run, open_page, add_update):
    with show_run() as served:
        page = open_page(served)
        expect(page.locator("#progress-text")).to_contain_text("update 37 of")
        add_update(served.folder, 38)
        served.run.now = served.run.now.model_copy(update={"step": 38, "phase": "publish"})
        expect(page.locator("#progress-text")).to_contain_text("update 38 of")
        expect(page.locator("#facts")).to_contain_text("publish")
        expect(page.locator("#curve-kl")).to_have_attribute("aria-label", re.compile("newest, update 38:"))
        add_update(served.folder, 31, "2.31")  # it was set back: what came after is no longer shown
        served.run.now = served.run.now.model_copy(update={"step": 31, "lineage": 2})
        expect(page.locator("#curve-kl")).to_have_attribute("aria-label", re.compile("newest, update 31:"))


def test_what_the_autoscaler_decided_is_shown_where_there_is_one(show_run, open_page):
    said = AutoscalerStatus(min_workers=1, max_workers=8, direction="up", reason="the learner waits 80 % of 10 s")
    with show_run() as served:
        page = open_page(served)
        line = page.locator("#autoscaler")
        expect(page.locator("#advice")).to_contain_text("The learner waits")
        expect(line).to_be_hidden()
        served.run.now = served.run.now.model_copy(update={"autoscaler": said})
        expect(line).to_have_text("Autoscaler, 1 to 8 workers · up: the learner waits 80 % of 10 s")


def test_text_of_the_model_is_shown_and_never_run(show_run, open_page):
    with show_run("hostile") as served:
        page = open_page(served)
        shown = page.locator("#texts .response").first
        expect(shown).to_contain_text('<script>document.title = "taken"</script><img src=x onerror=')
        expect(shown).to_contain_text("\"quotes\" & 'more' <b>bold</b>")
        assert "taken" not in page.title()
        assert page.locator("#texts :is(script, img, b)").count() == 0


def test_pause_scale_and_settings_reach_the_run(show_run, open_page):
    with show_run() as served:
        page = open_page(served)
        page.get_by_role("button", name="Pause", exact=True).click()
        expect(page.locator("#state")).to_have_text("paused")
        page.get_by_role("button", name="Resume").click()
        expect(page.locator("#state")).to_have_text("running")
        page.get_by_role("spinbutton", name="Rollout workers").fill("6")
        page.locator("#scale-rollout button").click()
        expect(page.locator("#pool-rollout tbody tr")).to_have_count(6)
        page.get_by_label("kl target").fill("4.5")
        page.get_by_role("button", name="Apply").click()
        expect(page.locator("#answer")).to_have_text("From the next update on: kl target 4.5.")
        assert served.run.calls == ["pause", "resume", ("scale", 6, None), ("change", {"kl_target": 4.5})]


def test_a_refusal_is_shown_in_the_words_of_the_run(show_run, open_page):
    with show_run() as served:
        page = open_page(served)
        page.get_by_role("spinbutton", name="Rollout workers").fill("1")
        page.locator("#scale-rollout button").click()
        expect(page.locator("#answer")).to_have_text("1 rollout workers are fewer than the minimum of 2; ask for more")
        page.get_by_label("temperature").fill("11")
        page.get_by_role("button", name="Apply").click()
        expect(page.locator("#answer")).to_contain_text("temperature: Input should be less than or equal to 10")


def test_a_wrong_token_opens_nothing_and_says_why(show_run, open_page, give_token):
    with show_run() as served:
        page = open_page(served, token="wrong")
        expect(page.locator("#answer")).to_contain_text("token")
        expect(page.locator("#pause")).to_be_disabled()
        assert page.evaluate("Object.keys(sessionStorage)") == []
        give_token(page, served.token)
        expect(page.locator("#pause")).to_be_enabled()
        assert served.token not in page.url
        page.reload()
        expect(page.locator("#pause")).to_be_enabled()  # kept by the tab
        page.evaluate("sessionStorage.setItem('minichatgpt-token', 'of an earlier start')")
        page.reload()
        expect(page.locator("#answer")).to_contain_text("does not hold this run's token")
        expect(page.locator("#state")).to_have_text("running")  # reading goes on without
        expect(page.locator("#pause")).to_be_disabled()
        assert served.run.calls == []


def test_a_run_that_is_gone_is_told_apart_from_one_that_has_ended(show_run, open_page):
    with show_run() as served:
        lost = open_page(served)
        expect(lost.locator("#state")).to_have_text("running")
    expect(lost.locator("#state")).to_have_text("no answer")
    expect(lost.locator("#notice")).to_contain_text("does not answer")
    expect(lost.locator("#pause")).to_be_disabled()
    with show_run("stopping") as served:
        ended = open_page(served)
        expect(ended.locator("#state")).to_have_text("stopping")
    expect(ended.locator("#notice")).to_contain_text("The run has ended: minichatgpt stop.")


def test_the_keyboard_reads_the_curves_and_everything_has_a_name(show_run, open_page):
    with show_run("alarm") as served:
        page = open_page(served)
        expect(page.get_by_label("Alarms")).to_contain_text("since update 34")
        page.locator("#curve-reward").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.locator(".reward .readout")).to_contain_text("update 36:")
        page.keyboard.press("Home")
        expect(page.locator(".reward .readout")).to_contain_text("update 1:")
        assert page.evaluate(NAMELESS) == []


@pytest.mark.parametrize(
    "scene", ["sixteen", *(pytest.param(name, marks=pytest.mark.slow) for name in ("long", "first", "pretrain"))]
)
def test_a_phone_has_no_sideways_scroll(show_run, open_page, scene):
    with show_run(scene) as served:
        page = open_page(served, width=390)
        expect(page.locator("#run")).to_have_text("demo")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_who_has_no_token_off_loopback_is_asked_for_one_and_shown_nothing_else(show_run, open_page, give_token):
    with show_run("alarm", host="0.0.0.0", allowed_hosts=["localhost"]) as served:
        page = open_page(served, token=None)
        expect(page.locator("#notice")).to_contain_text("Paste a token below")
        shown = page.evaluate(
            "[...document.querySelectorAll('main > *')].filter((n) => n.offsetParent).map((n) => n.id)"
        )
        assert shown == ["notice", "steer"]
        expect(page.locator("#controls")).to_be_hidden()
        give_token(page, served.read_token)
        expect(page.locator("#progress-text")).to_contain_text("update 37 of 200")
        expect(page.locator("#members")).to_be_visible()


def test_a_token_that_only_reads_has_buttons_that_say_why_they_do_nothing(show_run, open_page, give_token):
    with show_run() as served:
        page = open_page(served, token=served.read_token)
        expect(page.locator("#token-state")).to_contain_text("This token only reads")
        expect(page.locator("#pause")).to_be_visible()
        expect(page.locator("#pause")).to_be_disabled()
        give_token(page, served.token)
        expect(page.locator("#pause")).to_be_enabled()
        expect(page.locator("#token-state")).to_contain_text("held by this tab only")


def test_a_stage_without_updates_shows_its_steps(show_run, open_page):
    with show_run("sft") as served:
        page = open_page(served)
        expect(page.locator("#progress-text")).to_have_text("step 30 of 120 · 25 %")
        expect(page.locator("#facts")).to_contain_text("about 1 min 30 s")
        expect(page.locator("#facts")).to_contain_text("loss 3.61")


def test_while_paused_the_shares_are_said_to_be_of_before(show_run, open_page):
    with show_run("paused") as served:
        page = open_page(served)
        expect(page.locator("#waits")).to_contain_text("Paused: nobody has work. Before: The learner waits")
        expect(page.locator("#waits")).to_contain_text("the last update before the pause")
        expect(page.locator("#legend-target")).to_be_visible()
        expect(page.locator("#thinned")).to_have_text("")


def test_a_run_of_thousands_of_updates_is_drawn_from_its_beginning_and_says_what_is_left_out(
    show_run, open_page, add_update
):
    with show_run("thousands") as served:
        page = open_page(served)
        expect(page.locator("#thinned")).to_have_text("every 4th update is drawn until 2,001, all later ones")
        page.locator("#curve-reward").focus()
        page.keyboard.press("Home")
        expect(page.locator(".reward .readout")).to_contain_text("update 4:")
        page.keyboard.press("End")
        expect(page.locator(".reward .readout")).to_contain_text("update 2500:")
        add_update(served.folder, 2501)
        served.run.now = served.run.now.model_copy(update={"step": 2501})
        expect(page.locator("#curve-kl")).to_have_attribute("aria-label", re.compile("newest, update 2501:"))


def test_a_phone_shows_every_fact_of_a_member_with_its_name(show_run, open_page):
    with show_run() as served:
        page = open_page(served, width=400)
        cells = page.locator("#pool-rollout tbody tr").first.locator("td")
        expect(cells).to_have_count(10)
        for box in [cell.bounding_box() for cell in cells.all()]:
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 400
        assert cells.nth(5).evaluate("(cell) => getComputedStyle(cell, '::before').content") == '"tokens/s"'
