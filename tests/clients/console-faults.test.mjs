// The console when something goes wrong: wrong input, a server that is gone, an app that somebody else changes, and a page of
// another site.

import assert from "node:assert/strict"
import http from "node:http"
import { describe, test } from "node:test"
import { Client } from "./support/client.mjs"
import { asAdmin, atLogin } from "./support/console-page.mjs"
import { LATEST } from "./support/generations.mjs"
import { ADMIN, freePort, Herald } from "./support/herald.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { mint } from "./support/token.mjs"
import { eventually } from "./support/wait.mjs"

let herald, browser
withServerAndBrowser(started => ({ herald, browser } = started))

describe("wrong input", () => {
  test("is reported at its field, and the fault of a slug at the name from which it is made", async t => {
    await herald.createApp({ name: "Taken already" })
    const window = await admin(t)
    await window.go("/new-app")
    await window.by("name").fill("Taken already")
    await window.by("allowed_origins").fill("https://fine.example\nnonsense")
    await window.by("create-submit").click()
    await eventually(async () => (await faults(window)).length === 2, "both faults")
    const [name, origins] = await faults(window)
    assert.equal(name, "has already been taken")
    assert.match(origins, /^"nonsense" needs a \/\/ before the host/)
    assert.equal(await window.by("create-note").textContent(), "")
    assert.equal(await window.page.evaluate(() => document.activeElement.name), "name")
  })

  test("in an event is reported at each of its fields", async t => {
    const window = await admin(t)
    await window.go("/apps/test-app/send")
    await window.by("scope").fill("No Scope!")
    await window.by("topic").fill("a\u0007b")
    await window.by("event").fill("phx_reply")
    await window.by("send-submit").click()
    await eventually(async () => (await faults(window)).length === 3, "three faults")
    assert.deepEqual(await faults(window), ["has a character that is not allowed", "has a character that is not allowed", "is reserved"])
    await window.by("scope").fill("public")
    await window.by("topic").fill("room")
    await window.by("event").fill("msg")
    await window.by("payload").fill(JSON.stringify({ text: "x".repeat(1_100_000) }))
    await window.by("send-submit").click()
    await window.by("send-note").getByText("This is too large.").waitFor()
  })

  test("in a filter is reported with the name of its field, until it is removed", async t => {
    const window = await admin(t)
    await window.go("/apps/test-app/channels")
    await window.by("scope-filter").fill("No Scope!")
    await window.by("channels-note").getByText("Scope has a character that is not allowed.").waitFor()
    await window.by("scope-filter").fill("")
    await window.by("channels-note").getByText(/occupied$/).waitFor()
  })

  test("in the address leads to the overview", async t => {
    const window = await admin(t)
    for (const nowhere of ["/nothing/here", "/apps/%zz/live", "/apps//live/"]) {
      await window.go(nowhere)
      await eventually(async () => (await window.path()) === "/overview", nowhere)
      await window.go("/apps")
    }
  })
})

describe("the settings of an app", () => {
  test("change what was changed here, and leave alone what somebody else has changed meanwhile", async t => {
    const app = await herald.createApp({ name: "Edited twice" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("settings").waitFor()
    await herald.updateApp(app.slug, { client_events: "all", history_seconds: 60 })
    await window.by("subscription_count").uncheck()
    await window.by("authorized_only").check()
    await window.by("shared_tokens").check()
    await window.by("pusher").selectOption("false")
    await window.by("settings-submit").click()
    await window.by("settings-note").getByText("Saved.").waitFor()
    const { data } = await herald.ask("GET", `/api/apps/${app.slug}`, { username: app.key, password: app.secret })
    const { client_events, history_seconds, subscription_count, authorized_only, shared_tokens, pusher } = data
    const expected = { client_events: "all", history_seconds: 60, subscription_count: false, authorized_only: true, shared_tokens: true, pusher: false }
    assert.deepEqual({ client_events, history_seconds, subscription_count, authorized_only, shared_tokens, pusher }, expected)
    await window.by("settings-submit").click()
    await window.by("settings-note").getByText("Nothing has changed").waitFor()
    assert.equal(await window.by("client_events").inputValue(), "all")
  })
})

describe("the connections", () => {
  test("name their users", async t => {
    const app = await herald.createApp({ name: "Known users" })
    const client = new Client({ ...LATEST, transport: "WebSocket" }, herald)
    t.after(() => client.disconnect())
    const token = sub => ({ guardian_token: mint({ sub, listen: ["private:*"] }, app.secret) })
    await client.joined(`private:${app.slug}:one`, { payload: token("grace") })
    await client.joined(`private:${app.slug}:two`, { payload: token({ id: 7, name: "Ada" }) })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/connections`)
    const row = window.by("connections-table").getByTestId("row")
    assert.equal(await row.locator("[data-label=Users]").textContent(), "7, grace")
  })
})

describe("a server that is gone", () => {
  test("is reported by a view that loads and by a form, and both work when the server is back", async t => {
    const server = await Herald.start()
    t.after(() => server.close())
    const window = await admin(t, server)
    await server.stop("SIGKILL")
    await window.go("/apps/test-app/settings")
    await window.by("unreachable").waitFor()
    await window.page.getByText("The server cannot be reached.").waitFor()
    await server.start()
    // This view asks the server only once, so the console must load it again.
    await window.by("keys").waitFor()
    await window.by("unreachable").waitFor({ state: "hidden" })
    await window.go("/apps/test-app/send")
    await server.stop("SIGKILL")
    await window.by("send-submit").click()
    await window.by("send-note").getByText("The server has not answered. The change may have been made").waitFor()
    await window.by("unreachable").waitFor()
    await server.start()
    await window.by("unreachable").waitFor({ state: "hidden" })
    await window.by("send-submit").click()
    await window.by("send-note").getByText("Sent.").waitFor()
  })
})

describe("an app that somebody else changes", () => {
  test("is reported as missing in its tabs after it was renamed", async t => {
    const app = await herald.createApp({ name: "Renamed by another" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("settings").waitFor()
    await herald.updateApp(app.slug, { name: "Renamed it is" })
    await window.by("subscription_count").uncheck()
    await window.by("settings-submit").click()
    await window.by("settings-note").getByText("It may have been renamed or deleted.").waitFor()
    await window.by("show-secret").click()
    await window.by("notice").getByText("It may have been renamed or deleted.").waitFor()
    for (const tab of ["send", "channels", "connections", "usage", "audit", "settings"]) {
      // Another view in between, because all tabs of an app show the same text.
      await window.go("/apps")
      await window.heading("Apps").waitFor()
      await window.go(`/apps/${app.slug}/${tab}`)
      await window.by("no-app").getByText(`No app has the slug ${app.slug}`).waitFor()
    }
    await window.by("no-app").getByRole("link").click()
    await window.by("apps").getByRole("link", { name: "Renamed it is" }).waitFor()
  })

  test("keeps its own login when it is renamed, in a list and in a form", async t => {
    const app = await herald.createApp({ name: "Own login one" })
    const window = await opened(t)
    await window.loginAsApp(app)
    await window.by("live").waitFor()
    for (const [tab, ready] of [["connections", "connections-note"], ["settings", "settings"]]) {
      const slug = (await window.path()).split("/")[2]
      await window.go(`/apps/${slug}/${tab}`)
      await window.by(ready).waitFor()
      const { data } = await herald.ask("PATCH", `/api/admin/apps/${slug}`, ADMIN, { app: { name: `Own login ${tab}` } })
      if (tab === "settings") {
        await window.by("authorized_only").check()
        await window.by("settings-submit").click()
      }
      await eventually(async () => (await window.path()) === `/apps/${data.slug}/${tab}`, "the way to the new slug")
      await window.by(ready).waitFor()
    }
  })

  test("is reported as missing by a list that is open when it is deleted", async t => {
    const app = await herald.createApp({ name: "Deleted by another" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/connections`)
    await window.by("connections-note").getByText("0 connected").waitFor()
    await herald.deleteApp(app.slug)
    await window.by("connections-note").getByText("It may have been renamed or deleted.").waitFor()
  })
})

describe("a page of another site", () => {
  test("cannot show the console in a frame", async t => {
    const page = await foreign(t)
    const said = []
    page.on("console", message => said.push(message.text()))
    await page.setContent(`<iframe src="${herald.origin}/console"></iframe>`)
    await eventually(() => said.some(text => text.includes("frame-ancestors 'none'")), "the browser to refuse the frame")
    assert.equal(await page.frames().at(-1).locator("form, main").count(), 0)
  })

  test("cannot write with the session's cookie, nor read an answer", async t => {
    const app = await herald.createApp({ name: "Not to be deleted" })
    const window = await admin(t)
    const page = await foreign(t, window.page.context())
    const tried = await page.evaluate(async ({ origin, slug }) => {
      const read = await fetch(`${origin}/api/admin/apps`, { credentials: "include" }).then(() => "read", () => "not read")
      await fetch(`${origin}/api/admin/apps/${slug}/rotate`, { method: "POST", mode: "no-cors", credentials: "include", body: new URLSearchParams({ overlap_seconds: "0" }) })
      return read
    }, { origin: herald.origin, slug: app.slug })
    assert.equal(tried, "not read")
    await page.setContent(`<form method="post" action="${herald.origin}/api/admin/apps/${app.slug}/rotate"><input name="overlap_seconds" value="0"></form>`)
    const [answer] = await Promise.all([page.waitForResponse(/rotate$/), page.evaluate(() => document.forms[0].submit())])
    assert.ok([401, 403].includes(answer.status()), `${answer.status()}`)
    const { data } = await herald.ask("GET", `/api/apps/${app.slug}`, { username: app.key, password: app.secret })
    assert.equal(data.previous_key, null, "the keys of the app were not rotated")
  })
})

/** A window at the login. */
function opened(t, server = herald) {
  return atLogin(t, browser, server.origin)
}

/** A window in which the administrator is logged in. */
function admin(t, server = herald) {
  return asAdmin(t, browser, server.origin)
}

/** The faults that are shown at fields, in their order. */
function faults(window) {
  return window.page.locator(".fault:not(:empty)").allTextContents()
}

/** A page of another site. With the `context` of a console's window it shares that window's cookie store. */
async function foreign(t, context) {
  const server = http.createServer((_, response) => response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html>"))
  const port = await freePort()
  await new Promise(resolve => server.listen(port, "127.0.0.1", resolve))
  t.after(() => server.close())
  const page = context ? await context.newPage() : await browser.blank()
  if (!context) t.after(() => page.context().close())
  // A page at another host name belongs to another site. A page at another port of the same host would not.
  await page.goto(`http://localhost:${port}/`)
  return page
}
