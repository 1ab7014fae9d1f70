// The demo page in headless Chromium: two windows, triggers from a terminal, a server that restarts.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { Herald, TEST_APP } from "./support/herald.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { csrfSignature, mint } from "./support/token.mjs"

const TOPIC = "private:test-app"

/** The time after which the page reconnects by itself when its connection was cut by hand. */
const CUT_MS = 10_000

let herald, browser
withServerAndBrowser(started => ({ herald, browser } = started))

describe("two windows", () => {
  test("both show a message that one of them sends", async t => {
    const [one, two] = await twoWindows(t)
    await one.send({ name: "Ada", message: "hello, window two" })
    for (const window of [one, two]) {
      const shown = { kind: "channel", event: "msg", where: null, name: "Ada", message: "hello, window two", markup: 0 }
      assert.deepEqual(await window.entry("hello, window two"), shown)
    }
    assert.equal(await one.by("message").inputValue(), "")
    assert.equal(await one.by("feed-count").textContent(), "1 event")
  })

  test("both show an event that a terminal triggers", async t => {
    const windows = await twoWindows(t)
    await herald.trigger({ topic: "foo-topic", payload: { name: "curl", message: "from a terminal" } })
    for (const window of windows) assert.equal((await window.entry("from a terminal")).name, "curl")
  })

  test("a broadcast is marked as one, from a page and from a terminal", async t => {
    const [one, two] = await twoWindows(t)
    await one.send({ name: "Ada", message: "to all", broadcast: true })
    await herald.trigger({ topic: "#general", payload: { name: "curl", message: "to all, too" } })
    for (const window of [one, two]) {
      for (const message of ["to all", "to all, too"]) {
        const { kind, event, where } = await window.entry(message)
        assert.deepEqual([kind, event, where], ["broadcast", "msg", "to all channels"])
      }
    }
  })

  test("a window on another channel shows broadcasts, and other events on request", async t => {
    const one = await open(t)
    const other = await open(t, "/?app=test-app&channel=bar-topic")
    await one.send({ name: "Ada", message: "only foo-topic" })
    await one.entry("only foo-topic")
    await one.send({ name: "Ada", message: "everybody", broadcast: true })
    await other.entry("everybody")
    assert.deepEqual(await other.texts(), ["everybody"])
    assert.equal(await other.by("feed-count").textContent(), "1 event")
    assert.equal(await other.by("others").innerText(), "1 more on other channels\nShow")

    await other.by("others-toggle").click()
    assert.deepEqual(await other.texts(), ["everybody", "only foo-topic"])
    assert.equal(await other.by("others").innerText(), "1 on other channels\nHide")
    const shown = { kind: "elsewhere", event: "msg", where: "on foo-topic", name: "Ada", message: "only foo-topic", markup: 0 }
    assert.deepEqual(await other.entry("only foo-topic"), shown)

    await other.by("others-toggle").click()
    assert.deepEqual(await other.texts(), ["everybody"])
    assert.equal(await one.by("others").isHidden(), true)
  })
})

describe("every event is shown with its name", () => {
  const scope = [
    { trigger: { topic: "foo-topic", event: "order.created" }, kind: "channel", event: "order.created", where: null },
    { trigger: { topic: "foo-topic", event: "a:b" }, kind: "channel", event: "a:b", where: null },
    { trigger: { topic: "foo-topic", event: "presence_states" }, kind: "channel", event: "presence_states", where: null },
    { trigger: { topic: "#general", event: "deploy" }, kind: "broadcast", event: "deploy", where: "to all channels" },
    { trigger: { topic: "bar-topic", event: "msg" }, kind: "elsewhere", event: "msg", where: "on bar-topic" },
    { trigger: { topic: "foo-topic-2", event: "x:y" }, kind: "elsewhere", event: "x:y", where: "on foo-topic-2" },
    { trigger: { topic: "<b>", event: "<i>" }, kind: "elsewhere", event: "<i>", where: "on <b>" },
  ]

  test("on the page's scope", async t => {
    const window = await open(t)
    for (const [nth, { trigger }] of scope.entries()) {
      await herald.trigger({ ...trigger, payload: { message: `n${nth}` } })
    }
    await window.by("others").waitFor()
    await window.by("others-toggle").click()
    for (const [nth, { trigger, ...expected }] of scope.entries()) {
      assert.deepEqual(await window.entry(`n${nth}`), { ...expected, name: null, message: `n${nth}`, markup: 0 })
    }
  })

  test("in the private panel, for a whole scope and for a channel", async t => {
    const listen = ["presence:test-app", "presence:test-app:*"]
    const token = mint({ sub: "ada", listen, publish: listen }, TEST_APP.secret)
    for (const { topic, room, all } of [
      { topic: "presence:test-app", room: ["elsewhere", "deploy", "on room-1"], all: ["broadcast", "deploy", "to all channels"] },
      { topic: "presence:test-app:room-1", room: ["channel", "deploy", null], all: ["broadcast", "deploy", "to all channels"] },
    ]) {
      const window = await open(t)
      await window.joinPrivately({ topic, token })
      await window.privateIs("joined")
      for (const channel of ["room-1", "#general"]) {
        await herald.trigger({ scope: "presence", topic: channel, event: "deploy", payload: { message: channel } })
      }
      for (const [message, expected] of [["room-1", room], ["#general", all]]) {
        const { kind, event, where } = await window.entry(message, "private-feed")
        assert.deepEqual([kind, event, where], expected, topic)
      }
      // The page must not list the protocol's own events: the reply to the join, and presence.
      assert.deepEqual(await window.texts("private-feed"), ["#general", "room-1"], topic)
    }
  })
})

describe("every event is shown as text", () => {
  let one, two
  before(async () => {
    ;[one, two] = await Promise.all([opened(), opened()])
  })
  after(() => Promise.all([one, two].map(closed)))

  const hostile = [
    `<img src=x onerror="document.title='owned'">`,
    `<script>document.title='owned'</script>`,
    `</p></li><b>bold</b>`,
    `&lt;b&gt; &amp; "quotes" 'too'`,
    `javascript:document.title='owned'`,
  ]
  for (const message of hostile) {
    test(`${message} is not interpreted, in the message and in the name`, async () => {
      await one.send({ name: message.slice(0, 60), message })
      const shown = { kind: "channel", event: "msg", where: null, name: message.slice(0, 60).trim(), message, markup: 0 }
      assert.deepEqual(await two.entry(message), shown)
      assert.equal(await two.page.title(), "Herald · live demo")
    })
  }

  const odd = [
    { label: "a message and no name", payload: { message: "only words" }, message: "only words" },
    { label: "a blank name", payload: { name: " ", message: "by nobody" }, message: "by nobody" },
    { label: "no fields at all", payload: {} },
    { label: "nested values", payload: { name: { a: 1 }, message: [1, "<b>"] } },
    { label: "numbers, nulls", payload: { name: null, message: 0 } },
    { label: "other fields", payload: { revision: "abc" } },
    { label: "a message among other fields", payload: { name: "Ada", message: "hi", id: 7 } },
    { label: "a field called __proto__", payload: JSON.parse(`{"__proto__":{"message":"x"},"n":1}`) },
  ]
  for (const { label, payload, message = JSON.stringify(payload) } of odd) {
    test(`a payload with ${label} is shown whole`, async () => {
      await herald.trigger({ topic: "foo-topic", payload })
      const shown = { kind: "channel", event: "msg", where: null, name: null, message, markup: 0 }
      assert.deepEqual(await one.entry(message), shown)
    })
  }

  const bytes = [
    { sent: "AP8=", message: "2 bytes: 00 ff" },
    { sent: "Kg==", message: "1 byte: 2a" },
    { sent: "", message: "0 bytes" },
    { sent: Buffer.alloc(65, 0xaa).toString("base64"), message: `65 bytes: ${Array(64).fill("aa").join(" ")} …` },
  ]
  for (const { sent, message } of bytes) {
    test(`bytes are shown as ${message.slice(0, 20)}`, async () => {
      await herald.triggerRaw({ topic: "foo-topic", event: "image", payload_base64: sent })
      assert.deepEqual(await one.entry(message).then(({ event, name }) => [event, name]), ["image", null])
    })
  }

  test("the list keeps the latest 200, newest first", async t => {
    const window = await open(t)
    for (let n = 1; n <= 205; n += 1) await herald.trigger({ topic: "foo-topic", payload: { message: `n${n}` } })
    await window.entry("n205")
    const texts = await window.texts()
    assert.deepEqual([texts.length, texts[0], texts[199]], [200, "n205", "n6"])
    assert.equal(await window.by("feed-count").textContent(), "latest 200 of 205 events")
  })
})

describe("the connection", () => {
  const ends = [
    { signal: "SIGTERM", words: "Nothing was missed." },
    { signal: "SIGKILL", words: "Some of what was sent in between is missing (epoch)." },
  ]
  for (const { signal, words } of ends) {
    test(`says so when the server is gone (${signal}), and recovers by itself`, async t => {
      const windows = await twoWindows(t)
      await herald.stop(signal)
      for (const window of windows) {
        await window.is("reconnecting")
        assert.equal(await window.by("state-word").textContent(), "Reconnecting")
        assert.match(await window.by("state-detail").textContent(), /^The server does not answer\. Trying again/)
      }
      await windows[0].by("name").fill("Ada")
      await windows[0].by("message").fill("is anybody there?")
      await windows[0].by("message").press("Enter")
      assert.match(await windows[0].by("send-note").textContent(), /^Not sent/)
      assert.equal(await windows[0].by("message").inputValue(), "is anybody there?")

      await herald.start()

      for (const window of windows) await window.is("live")
      await windows[0].by("message").press("Enter")
      for (const window of windows) await window.entry("is anybody there?")
      const mark = await windows[1].by("mark").textContent()
      assert.equal(mark.replace(/\d+/, "n"), `Back after n s. ${words}`)
    })
  }

  test("can be cut by hand, and what was sent meanwhile arrives marked as recovered", async t => {
    const [one, two] = await twoWindows(t)
    // On a slow machine the window would otherwise reconnect by itself before the other one has sent its messages.
    await one.stopClock()
    await one.by("cut").click()
    await one.is("reconnecting")
    assert.equal(await one.by("state-word").textContent(), "Cut off")
    for (const message of ["first", "second"]) await two.send({ name: "Ada", message })
    await two.entry("second")
    assert.deepEqual(await one.texts(), [])

    await one.by("cut").getByText("Reconnect now").click()
    await one.is("live")
    await one.entry("second")
    assert.deepEqual(await one.texts(), ["second", "first"])
    assert.match(await one.by("mark").textContent(), /^Back after \d+ s\. 2 events were recovered\.$/)
    await two.send({ name: "Ada", message: "third" })
    await one.entry("third")
    assert.deepEqual(await one.recovered(), ["second", "first"])
    assert.deepEqual(await two.recovered(), [])
  })

  test("comes back by itself some seconds after it was cut by hand", async t => {
    const window = await open(t)
    await window.stopClock()
    await window.by("cut").click()
    await window.by("state-detail").getByText(`Trying again in ${CUT_MS / 1000} s.`).waitFor()
    await herald.trigger({ topic: "foo-topic", payload: { message: "meanwhile" } })
    await window.passes(CUT_MS - 1)
    await window.is("reconnecting")
    await window.passes(1)
    await window.entry("meanwhile")
    assert.deepEqual(await window.recovered(), ["meanwhile"])
    await window.by("cut").getByText("Cut the connection").waitFor()
  })

  test("the refusal of an app that does not exist is shown as a sentence", async t => {
    const window = await open(t, "/?app=no-such-app", "refused")
    assert.match(await window.by("state-detail").textContent(), /No active app answers to this topic \(unmatched topic\)/)
  })

  test("the page joins an app that is created while it retries", async t => {
    const window = await open(t, "/?app=late-app", "refused")
    await herald.createApp({ name: "late-app", client_events: "all" })
    await window.is("live")
  })

  test("a refused push is shown as a sentence, and the message returns to its field", async t => {
    const app = await herald.createApp({ name: "quiet-app", client_events: "none" })
    const window = await open(t, "/?app=quiet-app")
    await window.send({ name: "Ada", message: "psst" })
    await window.by("send-note").getByText("publishing here is not permitted").waitFor()
    assert.equal(await window.by("message").inputValue(), "psst")
    await herald.trigger({ topic: "foo-topic", payload: { message: "listening still works" } }, app)
    await window.entry("listening still works")
  })

  const impossible = [
    { label: "an app slug with capitals", query: "?app=Not%20A%20Slug" },
    { label: "a channel with a colon", query: "?channel=room:1" },
    { label: "a channel that begins with #", query: "?channel=%23general" },
  ]
  for (const { label, query } of impossible) {
    test(`${label} in the address is reported, and the page does not connect`, async t => {
      const window = await open(t, `/${query}`, "refused")
      assert.equal(await window.by("state-word").textContent(), "Not connected")
    })
  }

  test("the form switches app and channel, and the name is remembered", async t => {
    const window = await open(t)
    await window.send({ name: "Ada", message: "before" })
    await window.entry("before")
    await window.by("channel").fill("bar topic/ü")
    await window.by("switch-go").click()
    await window.page.waitForURL(/channel=bar/)
    await window.is("live")
    assert.equal(await window.by("channel-in-use").textContent(), "bar topic/ü")
    assert.equal(await window.by("name").inputValue(), "Ada")
    await herald.trigger({ topic: "bar topic/ü", payload: { message: "on the other channel" } })
    await window.entry("on the other channel")
  })
})

describe("the private panel", () => {
  const grant = claims => mint({ listen: [TOPIC], publish: [TOPIC], ...claims }, TEST_APP.secret)

  test("joins with a pasted token, shows what arrives, and sends", async t => {
    const window = await open(t)
    await window.joinPrivately({ topic: TOPIC, token: await herald.command("token", "--app", "test-app", "--listen", TOPIC, "--publish", TOPIC) })
    await window.privateIs("joined")

    await herald.trigger({ scope: "private", topic: "foo-topic", payload: { name: "curl", message: "a secret <b>" } })
    const shown = { kind: "elsewhere", event: "msg", where: "on foo-topic", name: "curl", message: "a secret <b>", markup: 0 }
    assert.deepEqual(await window.entry("a secret <b>", "private-feed"), shown)

    await window.by("private-message").fill("said in private")
    await window.by("private-send").click()
    await window.entry("said in private", "private-feed")
    assert.deepEqual(await window.texts("feed"), [])

    await window.by("private-leave").click()
    await window.privateIs("idle")
  })

  test("joins a single channel, and sends to it", async t => {
    const window = await open(t)
    const token = mint({ listen: [`${TOPIC}:*`], publish: [`${TOPIC}:*`] }, TEST_APP.secret)
    await window.joinPrivately({ topic: `${TOPIC}:room:1`, token })
    await window.privateIs("joined")
    await window.by("private-message").fill("in the room")
    await window.by("private-message").press("Enter")
    assert.deepEqual((await window.entry("in the room", "private-feed")).event, "msg")
  })

  const csrf = "dGhlIHBhZ2UncyB2YWx1ZQ=="
  const bound = { aud: "csrf", s_csrf: csrfSignature(csrf, TEST_APP.secret) }
  const refusals = [
    { label: "no token", token: "", words: "authentication_required" },
    { label: "a token for another topic", token: mint({ listen: ["private:test-app:x"] }, TEST_APP.secret), words: "authentication_required" },
    { label: "a forged token", token: mint({ listen: [TOPIC] }, "forged"), words: "invalid_token" },
    { label: "words that are not a token", token: "please", words: "invalid_token" },
    { label: "an expired token", token: grant({ exp: 1 }), words: "token_expired" },
    { label: "a bound token without its CSRF value", token: grant(bound), words: "invalid_csrf" },
    { label: "a topic of no app", topic: "private:no-such-app", token: grant({}), words: "unmatched topic" },
  ]
  test("shows a refusal as a sentence, and the page stays connected", async t => {
    const window = await open(t)
    for (const { label, words, ...join } of refusals) {
      await window.joinPrivately({ topic: TOPIC, ...join })
      await window.by("private-note").getByText(`(${words}).`).waitFor()
      await window.privateIs("refused")
      assert.equal(await window.by("private-leave").isDisabled(), true, label)
      await window.is("live")
    }
  })

  test("joins with a token and its CSRF value, and reports a push that is not permitted", async t => {
    const window = await open(t)
    await window.joinPrivately({ topic: TOPIC, token: grant({ ...bound, publish: [] }), csrf })
    await window.privateIs("joined")
    await window.by("private-message").fill("may I?")
    await window.by("private-send").click()
    await window.by("private-send-note").getByText("publishing here is not permitted").waitFor()
    assert.equal(await window.by("private-message").inputValue(), "may I?")
  })

  test("joins again by itself after a restart", async t => {
    const window = await open(t)
    await window.joinPrivately({ topic: TOPIC, token: grant({}) })
    await window.privateIs("joined")
    await herald.stop()
    await window.privateIs("joining")
    await herald.start()
    await window.privateIs("joined")
    await window.is("live")
  })
})

describe("accessibility", () => {
  test("by keyboard alone: name, message, broadcast, send", async t => {
    const window = await open(t)
    const { keyboard } = window.page
    await window.by("name").focus()
    await keyboard.type("Grace")
    await keyboard.press("Tab")
    await keyboard.type("typed, not clicked")
    await keyboard.press("Tab")
    await keyboard.press("Space")
    await keyboard.press("Tab")
    await keyboard.press("Enter")
    assert.deepEqual(await window.entry("typed, not clicked").then(({ name, kind }) => [name, kind]), ["Grace", "broadcast"])
  })

  test("every field and button has a name", async t => {
    const window = await open(t)
    const unnamed = await window.page.evaluate(() =>
      [...document.querySelectorAll("input, textarea, button")]
        .filter(control => !control.labels?.length && !control.textContent.trim())
        .map(control => control.outerHTML))
    assert.deepEqual(unnamed, [])
  })

  test("the page is served under a policy that allows nothing inline", async () => {
    const response = await fetch(`${herald.origin}/`)
    assert.match(response.headers.get("content-security-policy"), /default-src 'self'/)
    assert.doesNotMatch(response.headers.get("content-security-policy"), /unsafe/)
    assert.doesNotMatch(await response.text(), /<style|<script(?![^>]*src=)|\son\w+=|\sstyle=/i)
  })
})

/** A window that is closed at the end of its test. */
async function open(t, ...where) {
  const window = await opened(...where)
  t.after(() => closed(window))
  return window
}

async function opened(where = "/?app=test-app&channel=foo-topic", state = "live", options = {}) {
  const window = await browser.open(herald.origin + where, options)
  await window.is(state)
  return window
}

/** Closes a window, and fails if its console shows an error. */
async function closed(window) {
  await window.close()
  assert.deepEqual(window.complaints, [])
}

function twoWindows(t) {
  return Promise.all([open(t), open(t)])
}
