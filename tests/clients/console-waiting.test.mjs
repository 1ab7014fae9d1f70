// The console while an answer is awaited: answers that come late, never, or in another order, and what a person has typed, has
// focused and is shown by then.

import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { asAdmin } from "./support/console-page.mjs"
import { Herald } from "./support/herald.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { eventually } from "./support/wait.mjs"

const UNAVAILABLE = { status: 503, contentType: "application/json", body: `{"errors":{"detail":"service unavailable, try again later"}}` }
const HOUR_MS = 3_600_000

let herald, browser
withServerAndBrowser(started => ({ herald, browser } = started))

describe("a late answer", () => {
  test("does not replace the usage of the range that was chosen since", async t => {
    const window = await admin(t)
    const held = await window.hold(/\/usage\?.*by=hour/)
    await window.go("/apps/test-app/usage")
    const late = await held.call(0)
    await window.by("range-month").check({ force: true })
    await window.by("usage-numbers").waitFor()
    await window.answered(late, { status: 200, contentType: "application/json", body: `{"data":[]}` })
    assert.equal(await window.by("usage-table").getAttribute("aria-label"), "Usage by day")
  })

  test("does not replace the connections that were answered since", async t => {
    const window = await admin(t)
    await window.page.route(/\/connections\?limit=100$/, route => route.fulfill(sessions(["first"], 2)))
    const held = await window.hold(/\/connections\?limit=200$/)
    await window.go("/apps/test-app/connections")
    await window.page.getByRole("button", { name: "Show more" }).click()
    const late = await held.call(0)
    // The page asks again every 5 seconds.
    await window.by("connections-note").evaluate(note => {
      window.changes = []
      new MutationObserver(list => window.changes.push(...list)).observe(note, { childList: true, characterData: true, subtree: true })
    })
    await (await held.call(1)).fulfill(sessions(["third"], 2))
    await window.by("connections-table").getByText("third").waitFor()
    assert.equal(await window.page.evaluate(() => window.changes.length), 0, "the note is not written again with the same text")
    await window.answered(late, sessions(["second"], 2))
    assert.equal(await window.by("connections-table").getByTestId("row").locator("th").textContent(), "third")
  })

  test("does not move a person who has left", async t => {
    const app = await herald.createApp({ name: "Renamed too late" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("name").fill("Renamed at last")
    const held = await window.hold(`**/api/admin/apps/${app.slug}`)
    await window.by("settings-submit").click()
    const late = await held.call(0)
    await window.go("/overview")
    await window.heading("Overview").waitFor()
    const response = await late.fetch()
    await window.answered(late, { response })
    assert.equal(window.path(), "/overview")

    await held.end()
    await window.go("/new-app")
    await window.by("name").fill("Created at last")
    const creation = await window.hold("**/api/admin/apps")
    await window.by("create-submit").click()
    const created = await creation.call(0)
    await window.go("/overview")
    await window.heading("Overview").waitFor()
    const answer = await created.fetch()
    await created.fulfill({ response: answer })
    await window.by("notice").getByText("The app Created at last was created.").waitFor()
    assert.equal(window.path(), "/overview")
  })

  test("to a new name moves a person who is in another tab of the app", async t => {
    const app = await herald.createApp({ name: "Renamed and left" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("name").fill("Renamed and followed")
    const held = await window.hold(`**/api/admin/apps/${app.slug}`)
    await window.by("settings-submit").click()
    const late = await held.call(0)
    await window.go(`/apps/${app.slug}/usage`)
    await window.by("usage").waitFor()
    await late.continue()
    await window.by("notice").getByText("The settings of the app Renamed and followed are saved.").waitFor()
    await eventually(() => window.path() === "/apps/renamed-and-followed/usage", "the new slug")
    await window.by("usage-numbers").waitFor()
  })

  test("that is a failure is shown above the view that the person has changed to", async t => {
    const app = await herald.createApp({ name: "Failing too late" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("deactivate").click()
    const held = await window.hold(`**/api/admin/apps/${app.slug}`)
    await window.by("confirm").click()
    const late = await held.call(0)
    await window.page.keyboard.press("Escape")
    await late.fulfill(UNAVAILABLE)
    await window.by("notice").getByText("The server cannot do this now.").waitFor()
    await window.page.locator("#notice-close").click()

    await window.by("authorized_only").check()
    await window.by("settings-submit").click()
    const second = await held.call(1)
    await window.go("/overview")
    await window.heading("Overview").waitFor()
    await second.fulfill(UNAVAILABLE)
    await window.by("notice").getByText("The server cannot do this now.").waitFor()
    await window.go("/apps")
    await window.by("notice").waitFor({ state: "hidden" })
  })
})

describe("no answer", () => {
  test("within 15 seconds counts as a server that does not answer, and the page asks again", async t => {
    const window = await admin(t)
    await window.hurry()
    const hung = await window.hold(/connections|console\/session/)
    await window.go("/apps/test-app/connections")
    await hung.call(0)
    await window.by("unreachable").waitFor()
    await window.by("connections-note").getByText("The server cannot be reached.").waitFor()
    await hung.end()
    await window.page.reload()
    await window.by("connections-note").getByText("0 connected").waitFor()
  })

  test("to a change within 15 seconds is not reported as a change that was not made", async t => {
    const app = await herald.createApp({ name: "Slowly changed" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("authorized_only").check()
    await window.hurry()
    const hung = await window.hold(`**/api/admin/apps/${app.slug}`)
    await window.by("settings-submit").click()
    await hung.call(0)
    await window.by("settings-note").getByText("The server has not answered. The change may have been made: look before you repeat it.").waitFor()
  })

  test("counts up to the beginning of an answer, and the rest may take longer", async t => {
    const window = await admin(t)
    await window.hurry()
    await window.page.evaluate(() => {
      const fetched = fetch
      window.fetch = async (path, options) => {
        if (!path.includes("/connections")) return fetched(path, options)
        const answer = new ReadableStream({
          start(stream) {
            options.signal.addEventListener("abort", () => stream.error(options.signal.reason))
            const body = new TextEncoder().encode(`{"data":[],"total":0}`)
            setTimeout(() => (stream.enqueue(body), stream.close()), 300)
          },
        })
        return new Response(answer)
      }
    })
    await window.go("/apps/test-app/connections")
    await window.by("connections-note").getByText("0 connected").waitFor()
    assert.equal(await window.by("unreachable").isVisible(), false)
  })

  test("of one of the servers removes the figures of the overview until all answer", async t => {
    const window = await admin(t)
    const rows = window.by("nodes").getByTestId("row")
    await rows.first().waitFor()
    await window.answer("**/api/admin/overview", 503)
    await window.page.getByText("There are no figures now, because a server or the database does not answer.").waitFor()
    assert.equal(await window.by("figures").isVisible(), false)
    await window.page.unroute("**/api/admin/overview")
    await rows.first().waitFor()
    assert.equal(await window.page.getByText("There are no figures now").count(), 0)
  })

  test("to “Activate” is shown, and the app stays as it is", async t => {
    const app = await herald.createApp({ name: "Not activated", active: false })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("activate").waitFor()
    await window.answer(`**/api/admin/apps/${app.slug}`)
    await window.by("activate").click()
    await window.by("notice").getByText("The server has not answered. The change may have been made: look before you repeat it.").waitFor()
    await window.page.unroute(`**/api/admin/apps/${app.slug}`)
    await window.by("activate").click()
    await window.by("deactivate").waitFor()
    assert.equal(await window.by("notice").isVisible(), false)
  })
})

describe("what a person has typed", () => {
  test("stays in the settings when the keys are rotated and the app is deactivated and activated", async t => {
    const app = await herald.createApp({ name: "Unsaved settings" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("allowed_origins").fill("https://typed.example")
    await window.by("rotate-details").locator("summary").click()
    await window.by("rotate-submit").click()
    await window.by("previous-key").waitFor()
    await window.by("deactivate").click()
    await window.by("confirm").click()
    await window.by("activate").click()
    await window.by("deactivate").waitFor()
    assert.equal(await window.by("allowed_origins").inputValue(), "https://typed.example")
  })

  test("while the settings are saved stays, and is saved with the next ones", async t => {
    const app = await herald.createApp({ name: "Typed meanwhile" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("history_seconds").fill("60")
    const held = await window.hold(`**/api/admin/apps/${app.slug}`)
    await window.by("settings-submit").click()
    const late = await held.call(0)
    await window.by("allowed_origins").fill("https://typed.example")
    await late.continue()
    await window.by("settings-note").getByText("Saved.").waitFor()
    assert.equal(await window.by("allowed_origins").inputValue(), "https://typed.example")
    await held.end()
    await window.by("settings-submit").click()
    await eventually(async () => {
      const { data } = await herald.ask("GET", `/api/apps/${app.slug}`, { username: app.key, password: app.secret })
      return data.allowed_origins[0] === "https://typed.example" && data.history_seconds === 60
    }, "both changes")
  })
})

describe("the focus of the keyboard", () => {
  test("is not lost when its button goes away", async t => {
    const app = await herald.createApp({ name: "Focused app" })
    const window = await admin(t)
    const press = async button => {
      await button.focus()
      await window.page.keyboard.press("Enter")
    }
    const focused = () => window.page.evaluate(() => document.activeElement.textContent)
    await window.go(`/apps/${app.slug}/settings`)
    await press(window.by("show-secret"))
    await window.by("secret").getByText(app.secret).waitFor()
    assert.equal(await focused(), "Key and secret")
    await press(window.by("deactivate"))
    await press(window.by("confirm"))
    await window.by("activate").waitFor()
    await eventually(async () => (await focused()) === "Key and secret", "the focus after the dialog")
    await press(window.by("activate"))
    await window.by("deactivate").waitFor()
    assert.equal(await focused(), "Key and secret")

    // The page asks again every 5 seconds, so the answers depend on what is asked, and not on how often.
    let first = sessions(["a", "b"], 3)
    await window.page.route(/\/connections\?limit=100$/, route => route.fulfill(first))
    await window.page.route(/\/connections\?limit=200$/, route => route.fulfill(sessions(["b", "c"], 2)))
    await window.page.route(/\/connections\/a$/, route => {
      first = sessions(["b"], 2)
      return route.fulfill({ status: 204 })
    })
    await window.go(`/apps/${app.slug}/connections`)
    await press(window.page.getByRole("button", { name: "Disconnect a" }))
    await press(window.by("confirm"))
    await window.page.getByRole("button", { name: "Disconnect a" }).waitFor({ state: "detached" })
    await eventually(async () => (await focused()) === "Connections", "the focus after the disconnection")
    await press(window.page.getByRole("button", { name: "Show more" }))
    await window.page.getByRole("button", { name: "Show more" }).waitFor({ state: "hidden" })
    assert.equal(await focused(), "Connections")
  })
})

describe("the periods of the usage", () => {
  test("are those of UTC by the clock of the server, and as many as the range says", async t => {
    const app = await herald.createApp({ name: "Used elsewhere" })
    await herald.trigger({ topic: "m", payload: {} }, app)
    const window = await asAdmin(t, browser, herald.origin, { timezoneId: "Asia/Kolkata" })
    // The clock of this browser is wrong.
    await window.page.clock.setFixedTime(Date.now() + 50 * HOUR_MS)
    await window.page.reload()
    await window.by("overview").waitFor()
    await window.go(`/apps/${app.slug}/usage`)
    await window.by("usage-numbers").click()
    const asked = async () => {
      const query = new URL(await window.by("csv").getAttribute("href"), herald.origin).searchParams
      return ["from", "to"].map(name => Date.parse(query.get(name)))
    }
    const [from, to] = await asked()
    assert.equal((to - from) / HOUR_MS, 24)
    assert.ok(to > Date.now() - HOUR_MS && to <= Date.now() + HOUR_MS, `until ${new Date(to)}`)
    const said = await window.by("usage-table").getByTestId("row").locator("th").textContent()
    assert.match(said, /^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:00 UTC$/)
    const at = Date.parse(`${said.slice(0, 10)}T${said.slice(11, 16)}Z`)
    assert.ok(from <= at && at < to, said)
    for (const [range, hours] of [["month", 30 * 24], ["week", 7 * 24]]) {
      await window.by(`range-${range}`).check({ force: true })
      const [from, to] = await asked()
      assert.equal((to - from) / HOUR_MS, hours, range)
    }
  })
})

describe("a page of the usage that stays open", () => {
  test("shows the next hour when the last one is over, and downloads what is present at the click", async t => {
    const window = await admin(t)
    await window.page.clock.install({ time: Date.now() })
    const fromOf = url => Date.parse(new URL(url, herald.origin).searchParams.get("from"))
    const asks = () => window.page.waitForRequest(request => request.url().includes("/usage?"))
    const [first] = await Promise.all([asks(), window.go("/apps/test-app/usage")])
    await window.by("usage-numbers").waitFor()
    const [second] = await Promise.all([asks(), window.page.clock.fastForward(HOUR_MS)])
    assert.ok(fromOf(second.url()) > fromOf(first.url()), second.url())

    await window.page.reload()
    await window.by("usage-numbers").waitFor()
    const shown = fromOf(await window.by("csv").getAttribute("href"))
    await window.page.clock.setSystemTime(Date.now() + 3 * HOUR_MS)
    const [download] = await Promise.all([window.page.waitForEvent("download"), window.by("csv").click()])
    assert.ok(fromOf(download.url()) > shown, download.url())
  })
})

describe("an app that is not served", () => {
  test("shows the administrator everything that is left of it, and says that it is inactive", async t => {
    const app = await herald.createApp({ name: "Switched off" })
    await herald.trigger({ topic: "m", payload: {} }, app)
    await herald.updateApp(app.slug, { active: false })
    const window = await admin(t)
    const open = async tab => {
      await window.go(`/apps/${app.slug}/${tab}`)
      await window.by("app-note").getByText("This app is inactive").waitFor()
    }
    await open("usage")
    await window.by("total-publications").getByText("1").waitFor()
    await open("audit")
    await window.by("audit-table").getByTestId("row").first().waitFor()
    await open("channels")
    await window.by("channels-note").getByText("0 occupied").waitFor()
    await open("connections")
    await window.by("connections-note").getByText("0 connected").waitFor()
    await open("send")
    await window.by("send-submit").click()
    await window.by("send-note").getByText("the app is inactive").waitFor()
    await open("settings")
    assert.equal(await window.showSecret(), app.secret)
    assert.equal(await window.page.getByText("accepts no event").count(), 1)
  })

  test("because the server serves another one alone is refused events, and has no joins to end", async t => {
    const server = await Herald.start({ HERALD__SINGLE_APP: "test-app" })
    t.after(() => server.close())
    const window = await asAdmin(t, browser, server.origin)
    const note = window.page.getByText("This server serves the app test-app alone (single_app)")
    await window.go("/new-app")
    await window.by("name").fill("Kept back")
    await window.by("create-submit").click()
    await window.by("created").waitFor()
    assert.equal(await note.count(), 1)
    await window.go("/apps/kept-back/settings")
    await window.by("snippet-curl").waitFor()
    assert.equal(await note.count(), 1)
    await window.go("/apps/kept-back/send")
    await window.by("send-submit").click()
    await window.by("send-note").getByText("this server does not serve the app").waitFor()
    for (const [slug, ends] of [["kept-back", 0], ["test-app", 1]]) {
      await window.go(`/apps/${slug}/channels/public/room`)
      await window.by("channel").getByRole("heading", { name: "public · room" }).waitFor()
      await window.page.locator(".app-slug").getByText(slug).waitFor()
      assert.equal(await window.by("end-joins").count(), ends, slug)
    }
  })
})

describe("the limits of the server", () => {
  test("on replays may be lower than the usual number of retained events", async t => {
    const server = await Herald.start({ HERALD__HISTORY__REPLAY_MAX: "50" })
    t.after(() => server.close())
    await server.trigger({ topic: "few", event: "kept" })
    const window = await asAdmin(t, browser, server.origin)
    await window.go("/apps/test-app/channels/public/few")
    await window.by("show-history").click()
    await window.by("retained").locator(".event-name").getByText("kept").waitFor()
  })
})

describe("many apps", () => {
  test("are not drawn at once, and a filter finds each of them", async t => {
    const window = await admin(t)
    const app = nth => ({ name: `Numbered ${nth}`, slug: `numbered-${nth}`, active: true, inserted_at: "2026-01-01T00:00:00Z", key_last_used_at: null })
    await window.answer("**/api/admin/apps", 200, JSON.stringify({ data: Array.from({ length: 205 }, (_, nth) => app(nth)) }))
    await window.go("/apps")
    await window.by("apps-note").getByText("5 more.").waitFor()
    const rows = window.by("apps").getByTestId("row")
    assert.equal(await rows.count(), 200)
    await window.by("app-filter").fill("NUMBERED 204")
    await rows.getByRole("link", { name: "Numbered 204" }).waitFor()
    assert.equal(await rows.count(), 1)
    assert.equal(await window.by("apps-note").textContent(), "")
    await window.by("app-filter").fill("nowhere")
    await window.page.getByText("No app has this in its name or slug.").waitFor()
  })

  test("or none: the list says which", async t => {
    const window = await admin(t)
    await window.answer("**/api/admin/apps", 200, `{"data":[]}`)
    await window.go("/apps")
    await window.page.getByText("There is no app yet. Create one").waitFor()
  })
})

/** An answer that lists sessions. */
function sessions(ids, total) {
  const session = id => ({ id, protocol: "phoenix", vsn: "2.0.0", transport: "websocket", address: "127.0.0.1", since: "2026-01-01T00:00:00Z", subs: [], topics: [], queue: null })
  return { json: { data: ids.map(session), total } }
}

/** A window in which the administrator is logged in. */
function admin(t) {
  return asAdmin(t, browser, herald.origin)
}
