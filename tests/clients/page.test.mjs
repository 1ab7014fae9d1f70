// The demo page: the commands that it prints, the contrast of its colours, and its layout.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { OTHER_HOST } from "./support/browser.mjs"
import { CONTRAST_MIN, contrasts } from "./support/contrast.mjs"
import { Herald, TEST_APP } from "./support/herald.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { mint } from "./support/token.mjs"

const ROOM = "private:test-app:room-1"
const TOPICS = [ROOM, "private:test-app", "deploys:test-app:it's:a b", "presence:test-app:room-1", "presence:test-app"]
/** The time for which a button says that it has copied. */
const COPIED_MS = 2000

const COMMANDS = [
  { id: "curl", name: "Copy the curl command" },
  { id: "private-command", name: "Copy the command that mints a token" },
  { id: "private-curl", name: "Copy the private curl command" },
]

let herald, browser
withServerAndBrowser(started => ({ herald, browser } = started))

describe("the commands that the page prints", () => {
  test("are for a channel of the private scope, until another topic is typed", async t => {
    const window = await open(t)
    assert.equal(await window.by("private-topic").inputValue(), ROOM)
    const printed = "herald token --app test-app \\\n  --listen 'private:test-app:*' \\\n  --publish 'private:test-app:*'"
    assert.equal(await window.by("private-command").textContent(), printed)
    assert.equal(await window.by("pattern-in-use").textContent(), "private:test-app:*")
  })

  for (const topic of TOPICS) {
    test(`let a reader join ${topic}, hear what they trigger, and send`, t => tryPrivately(t, herald, topic))
  }

  test("trigger an event on the page's channel", t => tryPublicly(t, herald))
})

describe("on a server with a single app the commands that the page prints", () => {
  let single
  before(async () => {
    single = await Herald.start({ HERALD__SINGLE_APP: TEST_APP.slug })
  })
  after(() => single?.close())

  for (const topic of [...TOPICS, "deploys:web", "private:7:room"]) {
    test(`let a reader join ${topic}, hear what they trigger, and send`, t => tryPrivately(t, single, topic))
  }

  test("trigger an event on the page's channel", t => tryPublicly(t, single))
})

/** Joins a topic with the token that the page's command mints, triggers with its `curl`, and sends. */
async function tryPrivately(t, server, topic) {
  const window = await open(t, "/", { server })
  await window.by("private-topic").fill(topic)
  await window.joinPrivately({ token: await server.typed(await window.by("private-command").textContent()) })
  await window.privateIs("joined")
  assert.equal(await server.typed(await curl(window, "private-curl")), "{}")
  assert.equal((await window.entry("Hello", "private-feed")).name, "curl")
  await window.by("private-message").fill("I may send, too")
  await window.by("private-send").click()
  await window.entry("I may send, too", "private-feed")
}

/** Triggers on the page's own channel with its `curl`. */
async function tryPublicly(t, server) {
  const window = await open(t, `/?channel=${encodeURIComponent("it's")}`, { server })
  assert.equal(await server.typed(await curl(window, "curl")), "{}")
  assert.equal((await window.entry("Hello")).name, "curl")
}

async function curl(window, id) {
  const printed = await window.by(id).textContent()
  return printed.replace("curl -u KEY:SECRET", `curl --silent -u ${TEST_APP.key}:${TEST_APP.secret}`)
}

describe("each command has a button that copies it", () => {
  const places = [
    { label: "where the browser has a clipboard API", host: "127.0.0.1", isSecure: true },
    { label: "over plain HTTP from another machine, where it has none", host: OTHER_HOST, isSecure: false },
  ]
  for (const { label, host, isSecure } of places) {
    test(`by keyboard, ${label}`, async t => {
      const window = await joined(t, { host })
      assert.equal(await window.page.evaluate(() => Boolean(navigator.clipboard)), isSecure)
      assert.equal(await window.page.locator("pre").count(), COMMANDS.length)
      await window.stopClock()
      for (const { id, name } of COMMANDS) {
        const button = window.page.getByRole("button", { name, exact: true })
        await button.press("Enter")
        await window.page.locator(`[data-testid="copy-${id}"][data-outcome="copied"]`).getByText("Copied").waitFor()
        await window.passes(1)
        await window.by("copy-status").getByText("Copied to the clipboard.").waitFor()
        assert.equal(await window.page.evaluate(() => document.activeElement.dataset.testid), `copy-${id}`)
        assert.equal(await pasted(window), await window.by(id).textContent())
        await window.passes(COPIED_MS)
        await button.waitFor()
      }
    })
  }

  test("selects the command if the browser forbids copying", async t => {
    const window = await joined(t)
    await window.page.evaluate(() => {
      navigator.clipboard.writeText = () => Promise.reject(new DOMException("no", "NotAllowedError"))
      document.execCommand = () => false
    })
    await window.stopClock()
    await window.by("copy-private-command").click()
    await window.page.locator(`[data-testid="copy-private-command"][data-outcome="selected"]`).waitFor()
    await window.passes(1)
    await window.by("copy-status").getByText("Selected. Copy it").waitFor()
    const selected = await window.page.evaluate(() => getSelection().toString())
    assert.equal(selected, await window.by("private-command").textContent())
  })

  /** The content of the clipboard, which the test pastes into a field. */
  async function pasted(window) {
    await window.by("private-token").fill("")
    await window.by("private-token").press("ControlOrMeta+v")
    return window.by("private-token").inputValue()
  }
})

describe("the private panel", () => {
  test("highlights one button at a time: first Join, then Send", async t => {
    const window = await open(t)
    const look = testid => window.by(testid).evaluate(button => [button.textContent, getComputedStyle(button).backgroundColor])
    const [, primary] = await look("send")
    const [, quiet] = await look("switch-go")
    assert.deepEqual(await look("private-join"), ["Join", primary])
    await window.joinPrivately({ token: token() })
    await window.privateIs("joined")
    await window.page.mouse.move(0, 0)
    assert.deepEqual(await look("private-join"), ["Join again", quiet])
    assert.deepEqual(await look("private-leave"), ["Leave", quiet])
    assert.deepEqual(await look("private-send"), ["Send", primary])
    await window.by("private-leave").click()
    await window.privateIs("idle")
    assert.deepEqual(await look("private-join"), ["Join", primary])
  })
})

describe("contrasts", () => {
  test("are measured by the rules of WCAG", async t => {
    const page = await browser.blank()
    t.after(() => page.context().close())
    await page.setContent(`
      <p style="color: #000; background: #fff">a</p>
      <p style="color: #777; background: #fff">b</p>
      <div style="background: #000"><p style="color: #fff; opacity: 0.5">c</p></div>
      <p style="color: #fff; background: rgb(0 0 0 / 50%)">d</p>
      <p hidden>e</p>`)
    const measured = (await contrasts(page)).map(({ what, ratio }) => [what.at(-1), ratio.toFixed(2)])
    assert.deepEqual(measured, [["a", "21.00"], ["b", "4.48"], ["c", "5.28"], ["d", "3.98"]])
  })

  for (const colorScheme of ["light", "dark"]) {
    test(`of every text and every state of a button are sufficient, ${colorScheme}`, async t => {
      const window = await crowded(t, { colorScheme, viewport: { width: 1280, height: 860 } })
      const { page } = window
      const measured = await contrasts(page)
      assert.ok(measured.length > 60, "the texts were found")

      for (const state of ["connecting", "joining", "reconnecting", "live", "joined", "refused", "idle"]) {
        await page.evaluate(state => document.querySelectorAll(".state").forEach(shown => (shown.dataset.state = state)), state)
        measured.push(...(await contrasts(page, ".state")))
      }
      for (const outcome of ["copied", "selected"]) {
        await page.evaluate(outcome => document.querySelectorAll(".copy").forEach(shown => (shown.dataset.outcome = outcome)), outcome)
        measured.push(...(await contrasts(page, ".copy")))
      }
      for (const tone of ["calm", "bad"]) {
        await page.evaluate(tone => document.querySelectorAll(".note").forEach(note => Object.assign(note, { textContent: tone }).dataset.tone = tone), tone)
        measured.push(...(await contrasts(page, ".note")))
      }
      const pointed = await page.locator("button, summary, [href='#message']").all()
      for (const control of pointed) {
        await control.evaluate(shown => shown.setAttribute("data-measured", ""))
        await control.focus()
        measured.push(...(await contrasts(page, "[data-measured]")))
        await control.hover({ force: true })
        measured.push(...(await contrasts(page, "[data-measured]")))
        await control.evaluate(shown => (shown.disabled = true))
        measured.push(...(await contrasts(page, "[data-measured]")))
        await control.evaluate(shown => shown.removeAttribute("data-measured"))
      }
      const poor = measured.filter(({ ratio }) => ratio < CONTRAST_MIN).map(({ what, ratio }) => `${what} ${ratio.toFixed(2)}`)
      assert.deepEqual([...new Set(poor)], [])
    })
  }
})

describe("the layout", () => {
  test("of event, badge and time is the same on a phone and on a desktop", async t => {
    const seen = []
    for (const viewport of [{ width: 390, height: 844 }, { width: 768, height: 1024 }, { width: 1280, height: 860 }]) {
      const window = await crowded(t, { viewport })
      seen.push(...(await window.page.locator(".entry").evaluateAll(placesIn)))
    }
    assert.ok(seen.length >= 18, "the entries were found")
    assert.deepEqual([...new Set(seen.map(places => JSON.stringify(places)))].map(text => JSON.parse(text)), [
      { eventFromLeft: 0, textFromLeft: 0, timeFromRight: 0, timeBesideEvent: 0, whereBesideEvent: 0 },
    ])

    /** Measures distances in whole pixels from the content of the list. Runs in the page. */
    function placesIn(entries) {
      const box = element => element?.getBoundingClientRect()
      const middle = ({ top, bottom }) => (top + bottom) / 2
      return entries.map(entry => {
        const list = box(entry.parentElement)
        const [event, time, text] = [".entry-event", ".entry-time", ".entry-text"].map(part => box(entry.querySelector(part)))
        const where = box(entry.querySelector(".badge, .entry-where")) ?? event
        const places = {
          eventFromLeft: event.left - list.left,
          textFromLeft: text.left - list.left,
          timeFromRight: list.right - time.right,
          timeBesideEvent: middle(time) - middle(event),
          whereBesideEvent: middle(where) - middle(event),
        }
        return Object.fromEntries(Object.entries(places).map(([name, px]) => [name, Math.round(px) + 0]))
      })
    }
  })

  const looks = [
    { name: "phone", viewport: { width: 390, height: 844 }, deviceScaleFactor: 2 },
    { name: "small-phone", viewport: { width: 320, height: 568 } },
    { name: "tablet", viewport: { width: 768, height: 1024 } },
    { name: "desktop", viewport: { width: 1280, height: 860 } },
  ]
  for (const { name, ...device } of looks) {
    for (const colorScheme of ["light", "dark"]) {
      test(`fits a ${name}, ${colorScheme}`, async t => {
        const window = await crowded(t, { ...device, colorScheme })
        await herald.trigger({ topic: "foo-topic", event: "averyveryverylongevent".repeat(8), payload: { name: "Grace", message: `Loud and clear. ${"averyveryverylongword".repeat(12)}` } })
        await window.entry(`Loud and clear. ${"averyveryverylongword".repeat(12)}`)
        const overflow = await window.page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth)
        assert.equal(overflow, 0, "the page scrolls sideways")
        await window.screenshot(`${name}-${colorScheme}`)
      })
    }
  }
})

function token() {
  const patterns = ["private:test-app", "private:test-app:*"]
  return mint({ listen: patterns, publish: patterns }, TEST_APP.secret)
}

/** A window that is closed at the end of its test, which fails if the console shows an error. */
async function open(t, where = "/", { host = "127.0.0.1", server = herald, ...options } = {}) {
  const window = await browser.open(`http://${host}:${server.port}${where}`, options)
  t.after(async () => {
    await window.close()
    assert.deepEqual(window.complaints, [])
  })
  await window.is("live")
  return window
}

/** A window that has joined the private topic, with all details open. */
async function joined(t, options = {}) {
  const window = await open(t, "/", options)
  await window.joinPrivately({ token: token() })
  await window.privateIs("joined")
  await window.page.evaluate(() => document.querySelectorAll("details").forEach(details => (details.open = true)))
  return window
}

/** A window with entries of every kind in both lists. */
async function crowded(t, options) {
  const window = await joined(t, options)
  await herald.trigger({ topic: "foo-topic", payload: { name: "Ada", message: "Good evening. Is anybody listening on foo-topic?" } })
  await herald.trigger({ topic: "#general", payload: { name: "Rails", message: "Version 42 is out: please reload when it suits you." } })
  await herald.trigger({ topic: "foo-topic", event: "order.created", payload: { id: 4711, total: "39.90" } })
  await herald.trigger({ topic: "bar-topic", event: "deploy", payload: { revision: "abc" } })
  await herald.trigger({ scope: "private", topic: "room-1", payload: { name: "Grace", message: "in the room" } })
  await herald.trigger({ scope: "private", topic: "#general", event: "notice", payload: { name: "Rails", message: "to all rooms" } })
  for (const message of ["in the room", "to all rooms"]) await window.entry(message, "private-feed")
  await window.by("others-toggle").click()
  await window.entry(`{"revision":"abc"}`)
  return window
}
