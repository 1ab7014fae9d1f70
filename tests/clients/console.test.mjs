// The console in a headless Chromium: logins, apps, live events, connections, history, usage, and a restart.

import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import http from "node:http"
import { describe, test } from "node:test"
import { Client } from "./support/client.mjs"
import { asAdmin, atLive, atLogin } from "./support/console-page.mjs"
import { LATEST } from "./support/generations.mjs"
import { freePort, Herald, TEST_APP } from "./support/herald.mjs"
import { ROOT } from "./support/markdown.mjs"
import { Proxy } from "./support/proxy.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { mint } from "./support/token.mjs"
import { eventually } from "./support/wait.mjs"

/** A secret that a shell, Ruby and JavaScript would read as code, or change, if it were not quoted. */
const HOSTILE_SECRET = `it's "quoted" $(exit 9) \`exit 9\` $HOME \\ #{exit 9} #$0 \${exit} \\u0041 ;end`

let herald, browser
withServerAndBrowser(started => ({ herald, browser } = started))

describe("the login", () => {
  test("of the administrator shows everything", async t => {
    const window = await admin(t)
    assert.deepEqual(await window.page.locator("#sections a").allTextContents(), ["Overview", "Apps", "API"])
    await window.by("tile").filter({ hasText: "Sessions" }).getByText(/^[0-9,]+$/).waitFor()
  })

  test("of an app shows this app only", async t => {
    const other = await herald.createApp({ name: "Another tenant" })
    const window = await opened(t)
    await window.loginAsApp(TEST_APP)
    await window.by("live").waitFor()
    assert.deepEqual(await window.page.locator("#sections a").allTextContents(), ["App", "API"])
    for (const elsewhere of ["/apps", "/overview", `/apps/${other.slug}/settings`]) {
      await window.go(elsewhere)
      await eventually(() => window.path() === "/apps/test-app/live", "the way back to its own app")
    }
    assert.equal(await window.page.getByText("Another tenant").count(), 0)
    await window.go("/apps/test-app/settings")
    await window.by("client_events").waitFor()
    for (const button of ["name", "deactivate", "delete"]) assert.equal(await window.by(button).count(), 0, button)
  })

  test("with a wrong password or secret is refused, and says so", async t => {
    const window = await opened(t)
    await window.loginAsAdmin({ username: "pusher_admin_username", password: "wrong" })
    await window.by("login-note").getByText("The user name or the password is wrong.").waitFor()
    assert.equal(await window.by("user").inputValue(), "pusher_admin_username")
    await window.loginAsApp({ key: TEST_APP.key, secret: "not-the-secret-of-it" })
    await window.by("login-note").getByText("The key or the secret is wrong, or the app is inactive.").waitFor()
  })

  test("is throttled, and says for how long", async t => {
    const strict = await Herald.start({ HERALD__LIMITS__FAILED_ADMIN_LOGINS_PER_MINUTE_MAX: "2" })
    t.after(() => strict.close())
    const window = await opened(t, { server: strict })
    await eventually(async () => {
      await window.loginAsAdmin({ username: "pusher_admin_username", password: "wrong" })
      const said = await eventually(() => window.by("login-note").textContent(), "the answer")
      return /^There were too many attempts\. Try again in [0-9]+ seconds\.$/.test(said)
    }, "the throttle")
  })

  test("ends with “Log out”, for this window and for others", async t => {
    const window = await admin(t)
    const second = await window.page.context().newPage()
    await second.goto(`${herald.origin}/console#/apps`)
    await second.getByRole("link", { name: "Test App" }).waitFor()
    await window.by("logout").click()
    await window.heading("Log in").waitFor()
    await second.getByRole("heading", { name: "Log in" }).waitFor()
    await window.go("/apps/test-app/settings")
    await eventually(() => window.path() === "/login?next=%2Fapps%2Ftest-app%2Fsettings", "the way back to the login")
    await window.heading("Log in").waitFor()
  })

  test("is asked for again when the session has ended, and leads back", async t => {
    const window = await admin(t)
    await window.go("/apps")
    await window.heading("Apps").waitFor()
    await window.page.context().clearCookies()
    await window.go("/apps/test-app/settings")
    await window.heading("Log in").waitFor()
    await window.by("notice").getByText("Your session has ended.").waitFor()
    await window.loginAsAdmin()
    await window.by("keys").waitFor()
    assert.equal(window.path(), "/apps/test-app/settings")
  })

  test("and the way to an app need no pointer", async t => {
    const window = await opened(t)
    const { keyboard } = window.page
    await window.by("user").waitFor()
    await keyboard.press("Tab")
    assert.equal(await focused(window), "Skip to the content")
    await keyboard.press("Tab") // the kind of login
    await keyboard.press("Tab")
    await keyboard.type("pusher_admin_username")
    await keyboard.press("Tab")
    await keyboard.type("pusher_admin_password")
    await keyboard.press("Enter")
    await window.heading("Overview").waitFor()
    assert.equal(await focused(window), "Overview", "the heading of the new view has the focus")
    await window.page.locator("#skip").focus()
    await keyboard.press("Tab")
    await keyboard.press("Tab")
    assert.equal(await focused(window), "Apps")
    await keyboard.press("Enter")
    await window.heading("Apps").waitFor()
    assert.equal(await focused(window), "Apps")
    const first = window.by("apps").locator("a").first()
    await first.waitFor()
    await keyboard.press("Tab") // New app
    await keyboard.press("Tab") // the filter
    await keyboard.press("Tab")
    assert.equal(await focused(window), await first.textContent())
    await keyboard.press("Enter")
    await window.by("live").waitFor()
    assert.equal(await focused(window), "Live events")
  })
})

describe("apps", () => {
  test("are created with a snippet that receives an event when it is pasted into a page", async t => {
    const window = await admin(t)
    await window.go("/new-app")
    await window.by("name").fill("Shop of the tests")
    await window.by("create-submit").click()
    await window.by("created").waitFor()
    const page = await pasted(t, await window.by("snippet-javascript").textContent())
    await eventually(async () => (await page.heard()).includes("joined"), "the page to join")
    assert.equal(await herald.typed((await window.by("snippet-curl").textContent()).replace("curl", "curl --silent")), "{}")
    await eventually(async () => (await page.heard()).includes(`received {"message":"Hello from a terminal"}`), "the event")
  })

  test("have snippets that work on a server for a single app, too", async t => {
    const server = await Herald.start({ HERALD__SINGLE_APP: "test-app" })
    t.after(() => server.close())
    const window = await admin(t, { server })
    await window.go("/apps/test-app/settings")
    await window.showSecret()
    const script = await window.by("snippet-javascript").textContent()
    assert.ok(script.includes(`"public:foo-topic"`), script)
    assert.ok((await window.by("snippet-rails").textContent()).includes(`listen: ["private:room-1"]`))
    const page = await pasted(t, script)
    await eventually(async () => (await page.heard()).includes("joined"), "the page to join")
    assert.equal(await server.typed((await window.by("snippet-curl").textContent()).replace("curl", "curl --silent")), "{}")
    await eventually(async () => (await page.heard()).includes(`received {"message":"Hello from a terminal"}`), "the event")
  })

  test("say what is wrong with a name at its field", async t => {
    const window = await admin(t)
    await window.go("/new-app")
    await window.by("name").evaluate(input => input.removeAttribute("minlength"))
    await window.by("name").fill("abc")
    await window.by("create-submit").click()
    await window.page.getByText("should be at least 5 character(s)").waitFor()
    assert.equal(await window.by("name").getAttribute("aria-invalid"), "true")
    assert.equal(await window.page.evaluate(() => document.activeElement.name), "name")
  })

  test("are deactivated, activated and deleted, the last only when the slug is typed", async t => {
    const app = await herald.createApp({ name: "Short-lived app" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    const state = window.page.locator(".app-head .badge")
    await window.by("deactivate").click()
    await window.by("confirm").click()
    await window.by("activate").waitFor()
    assert.equal(await state.textContent(), "inactive")
    await window.by("activate").click()
    await window.by("deactivate").waitFor()
    assert.equal(await state.textContent(), "active")
    await window.by("delete").click()
    assert.equal(await window.by("confirm").isDisabled(), true)
    await window.by("typed").fill(app.slug)
    await window.by("confirm").click()
    await window.heading("Apps").waitFor()
    await window.by("apps").waitFor()
    assert.equal(await window.by("apps").getByText("Short-lived app").count(), 0)
  })

  test("show their secret only on request", async t => {
    const app = await herald.createApp({ name: "Secretive app" })
    const window = await admin(t)
    const answers = []
    window.page.on("response", response => answers.push(response.text().catch(() => "")))
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("show-secret").waitFor()
    assert.equal((await Promise.all(answers)).some(text => text.includes(app.secret)), false)
    assert.match(await window.by("snippet-curl").textContent(), /:SECRET /)
    assert.equal(await window.showSecret(), app.secret)
    assert.ok((await window.by("snippet-curl").textContent()).includes(`${app.key}:${app.secret}`))
  })

  test("rotate their keys while a client stays connected, and both pairs work", async t => {
    const app = await herald.createApp({ name: "Rotating app" })
    const topic = `private:${app.slug}:room`
    const channel = await connected(t, topic, { guardian_token: mint({ listen: [topic] }, app.secret) })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.by("rotate-details").locator("summary").click()
    await window.by("rotate-submit").click()
    await window.by("previous-key").getByText(app.key).waitFor()
    const key = await window.by("key").textContent()
    const secret = await window.by("secret").textContent()
    assert.notEqual(key, app.key)
    for (const pair of [app, { ...app, key, secret }]) await herald.trigger({ scope: "private", topic: "room", payload: { by: pair.key } }, pair)
    assert.deepEqual((await channel.inbox.take("the old pair's event")).payload, { by: app.key })
    assert.deepEqual((await channel.inbox.take("the new pair's event")).payload, { by: key })
  })

  test("have snippets in which no secret is read as code", async t => {
    const app = await herald.createApp({ name: "Hostile app", secret: HOSTILE_SECRET })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/settings`)
    await window.showSecret()
    const shown = name => window.by(`snippet-${name}`).textContent()
    const said = (program, flag, code) => herald.printed(program, [flag, code])
    const curl = (await shown("curl")).replace(/^curl /, `printf '%s\\n' `)
    assert.ok((await said("sh", "-c", curl)).includes(`\n${app.key}:${HOSTILE_SECRET}\n`))
    const assignments = (await shown("rails")).match(/^HERALD_.*$/gm).join("\n")
    assert.equal(await said("ruby", "-e", `${assignments}\nprint HERALD_KEY, ":", HERALD_SECRET`), `${app.key}:${HOSTILE_SECRET}`)
    const options = (await shown("pusher")).match(/new Pusher\((.*?\n})\)/s)[1]
    assert.equal(await said("node", "-e", `process.stdout.write((${options}).secret)`), HOSTILE_SECRET)
    assert.equal(await herald.typed((await shown("curl")).replace("curl", "curl --silent")), "{}")
  })

  test("record in their audit trail who has changed what", async t => {
    const app = await herald.createApp({ name: "Audited app" })
    await herald.updateApp(app.slug, { client_events: "all" })
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/audit`)
    const rows = window.by("audit-table").getByTestId("row")
    await rows.nth(1).waitFor()
    assert.match(await rows.nth(0).textContent(), /admin127\.0\.0\.1update.*client_events/)
    assert.match(await rows.nth(1).textContent(), /create/)
  })
})

describe("live events", () => {
  test("show publications, joins, leaves and refusals, with filters and payloads on a click", async t => {
    const window = await watching(t)
    const channel = await connected(t, "public:test-app:live-room")
    const refused = client(t).join("private:test-app:vault")
    assert.equal((await refused.replies.take()).status, "error")
    await herald.trigger({ topic: "live-room", event: "live.msg", payload: { word: "<b>bold</b>" } })
    await channel.leave()
    const listed = await eventually(async () => {
      const events = await window.events()
      return ["publication", "join", "leave", "refusal"].every(kind => events.some(event => event.kind === kind)) && events
    }, "one event of each kind")
    const publication = listed.find(({ name }) => name === "live.msg")
    assert.equal(publication.topic, "public:test-app:live-room")
    assert.match(publication.facts, /^[0-9]+ B · to 1 · http$/)
    assert.ok(listed.some(({ kind, topic, name }) => kind === "refusal" && topic === "private:test-app:vault" && name !== ""))

    await window.by("filter").fill("live.msg")
    const showsOnly = async isMeant => {
      const events = await window.events()
      return events.length > 0 && events.every(isMeant)
    }
    await eventually(() => showsOnly(({ name }) => name === "live.msg"), "the filter by text")
    await window.page.getByRole("button", { name: "Payload" }).first().click()
    await window.by("payload").getByText(`"word": "<b>bold</b>"`).waitFor()
    assert.equal(await window.by("payload").locator("b").count(), 0, "a payload is text")
    await window.page.keyboard.press("Escape")
    await window.by("filter").fill("")
    for (const kind of ["publication", "join", "leave"]) await window.by(`kind-${kind}`).uncheck()
    await eventually(() => showsOnly(({ kind }) => kind === "refusal"), "the filter by kind")
  })

  test("name the user of a join, and the calls and pushes that were refused", async t => {
    const app = await herald.createApp({ name: "Refusing app" })
    const window = await watching(t, app.slug)
    const topic = `private:${app.slug}:room`
    const channel = await connected(t, topic, { guardian_token: mint({ sub: "ada", listen: [topic] }, app.secret) })
    channel.push("msg", {})
    const headers = { authorization: `Basic ${btoa(`${app.key}:wrong`)}`, "content-type": "application/json" }
    const body = JSON.stringify({ topic: "room", event: "msg" })
    await fetch(`${herald.origin}/api/apps/${app.slug}/events`, { method: "POST", headers, body })
    const listed = await eventually(async () => {
      const events = await window.events()
      return ["join", "refusal", "refusal"].every((kind, nth) => events.filter(event => event.kind === kind).length >= Math.max(1, nth)) && events
    }, "the join and both refusals")
    assert.ok(listed.some(({ kind, name }) => kind === "join" && name === "ada"), "the user")
    const refusals = listed.filter(({ kind }) => kind === "refusal").map(({ topic, name, facts }) => `${topic} ${name} ${facts}`).sort()
    assert.deepEqual(refusals, [`POST /api/apps/${app.slug}/events wrong_credentials 127.0.0.1 · call`, `${topic} publish_not_permitted 127.0.0.1 · push`])
  })

  test("follow an app that is renamed, and end with one that is deleted", async t => {
    const app = await herald.createApp({ name: "Before the renaming" })
    const window = await watching(t, app.slug)
    const own = await opened(t)
    await own.loginAsApp(app)
    await own.liveIs("live")
    await herald.updateApp(app.slug, { name: "After the renaming" })
    const slug = "after-the-renaming"
    for (const page of [window, own]) {
      await eventually(() => page.path() === `/apps/${slug}/live`, "the way to the new slug")
      await page.liveIs("live")
    }
    await herald.trigger({ topic: "renamed", event: "after" }, { ...app, slug })
    for (const page of [window, own]) await eventually(async () => (await page.events())[0]?.name === "after", "an event under the new slug")
    await herald.deleteApp(slug)
    await window.liveIs("ended")
    await window.by("gap").getByText("No app has this slug any more").waitFor()
  })

  test("hold still while they are paused", async t => {
    const window = await watching(t)
    await herald.trigger({ topic: "paused", event: "before" })
    await eventually(async () => (await window.events())[0]?.name === "before", "the first event")
    await window.by("pause").click()
    await herald.trigger({ topic: "paused", event: "meanwhile" })
    await window.by("shown").getByText("1 waiting").waitFor()
    assert.equal((await window.events())[0].name, "before")
    await window.by("pause").click()
    await eventually(async () => (await window.events())[0]?.name === "meanwhile", "what has waited")
  })

  test("recover what happened while the connection was lost, and say so", async t => {
    const proxy = await Proxy.start(herald)
    t.after(() => proxy.close())
    const window = await watching(t, "test-app", { server: proxy })
    const witness = await watching(t)
    proxy.goDown()
    await window.liveIs("reconnecting")
    await herald.trigger({ topic: "meanwhile", event: "missed" })
    await eventually(async () => (await witness.events()).some(({ name }) => name === "missed"), "the event at the other window")
    proxy.comeBack()
    await window.liveIs("live")
    await window.by("gap").getByText(/^The connection was lost .* Nothing that the server reported is missing: [1-9]/).waitFor()
    await eventually(async () => (await window.events()).some(({ name }) => name === "missed"), "the event that was missed")
  })

  test("continue after a restart of the server under the open page, which says so", async t => {
    const server = await Herald.start()
    t.after(() => server.close())
    const window = await watching(t, "test-app", { server })
    // After a restart the server resumes the feed of an app only if the feed had begun before, so the test waits for
    // its first figures.
    await window.by("live").getByText(/^[0-9,]+ sessions?, /).waitFor()
    await server.stop()
    await window.liveIs("reconnecting")
    await server.start()
    await server.trigger({ topic: "again", event: "meanwhile" })
    await window.liveIs("live")
    const said = window.by("gap").getByText(/^The connection was lost for [0-9]+ seconds?[.,]/)
    await said.waitFor()
    t.diagnostic(await said.textContent())
    await eventually(async () => (await window.events()).some(({ name }) => name === "meanwhile"), "what happened before the page was back")
    await server.trigger({ topic: "again", event: "after" })
    await eventually(async () => (await window.events())[0]?.name === "after", "an event after the restart")
  })
})

describe("an app", () => {
  test("sends events of the event creator", async t => {
    const channel = await connected(t, "public:test-app:created")
    const window = await admin(t)
    await window.go("/apps/test-app/send")
    await window.by("topic").fill("created")
    await window.by("event").fill("msg")
    await window.by("payload").fill("[1]")
    await window.by("send-submit").click()
    await window.page.getByText("This is not a JSON object").waitFor()
    await window.by("payload").fill(`{"from":"the console"}`)
    await window.by("send-submit").click()
    await window.by("send-note").getByText("Sent. Its position is").waitFor()
    assert.deepEqual((await channel.inbox.take("the event")).payload, { from: "the console" })
  })

  test("sends and shows the numbers of a payload as they are typed", async t => {
    const window = await watching(t)
    const other = await admin(t)
    await other.go("/apps/test-app/send")
    await other.by("topic").fill("numbers")
    await other.by("payload").fill(`{"id":9007199254740993,"price":1.0}`)
    await other.by("send-submit").click()
    await other.by("send-note").getByText("Sent. Its position is").waitFor()
    const typed = `{\n  "id": 9007199254740993,\n  "price": 1.0\n}`
    await other.go("/apps/test-app/channels/public/numbers")
    await other.by("show-history").click()
    await other.by("retained").locator("summary").click()
    assert.equal(await other.by("retained").locator("pre").textContent(), typed)
    await window.by("filter").fill("numbers")
    await window.page.getByRole("button", { name: "Payload" }).first().click()
    assert.equal(await window.by("payload").locator("pre").textContent(), typed)
  })

  test("lists its channels with their members and their history", async t => {
    const token = mint({ sub: "ada", listen: ["presence:*"], presence: { name: "Ada" } }, TEST_APP.secret)
    await connected(t, "presence:test-app:team/a b", { guardian_token: token })
    await herald.trigger({ scope: "presence", topic: "team/a b", event: "hello", payload: { n: 1 } })
    const window = await admin(t)
    await window.go("/apps/test-app/channels")
    await window.by("channels-table").getByRole("link", { name: "presence:test-app:team/a b" }).click()
    await window.by("channel").getByText("1 member").waitFor()
    await window.by("channel").getByText("ada").waitFor()
    assert.equal(await window.by("retained").count(), 0, "payloads are shown only after a click")
    await window.by("show-history").click()
    await window.by("retained").filter({ hasText: "hello" }).locator("summary").click()
    await window.by("retained").getByText(`"n": 1`).waitFor()
  })

  test("lists its connections and ends one of them", async t => {
    const app = await herald.createApp({ name: "Connected app" })
    const connection = client(t)
    await connection.joined(`public:${app.slug}:here`)
    const window = await admin(t)
    await window.go(`/apps/${app.slug}/connections`)
    const row = window.by("connections-table").getByTestId("row")
    await row.waitFor()
    const said = await row.textContent()
    for (const part of ["Phoenix 2.0.0", "WebSocket", "127.0.0.1", `public:${app.slug}:here`, "empty"]) assert.ok(said.includes(part), `${part} in ${said}`)
    await row.getByRole("button").click()
    await window.by("confirm").click()
    await connection.lost.take("the end of the connection")
  })

  test("reports what was sent as its usage", async t => {
    const app = await herald.createApp({ name: "Measured app" })
    for (const _ of ["one", "two"]) await connected(t, `public:${app.slug}:m`)
    for (let n = 0; n < 7; n += 1) await herald.trigger({ topic: "m", payload: { n } }, app)
    const window = await admin(t)
    await eventually(async () => {
      await window.go("/apps")
      await window.go(`/apps/${app.slug}/usage`)
      return (await window.by("total-deliveries").locator(".tile-value").textContent()) === "14"
    }, "14 deliveries")
    assert.equal(await window.by("total-publications").locator(".tile-value").textContent(), "7")
    assert.equal(await window.by("total-joins").locator(".tile-value").textContent(), "2")
    // The hour may turn while the events are sent.
    assert.match(await window.page.locator("[data-chart=publications] [role=img]").getAttribute("aria-label"), /latest [0-7], highest [1-7]\./)
    const downloading = window.page.waitForEvent("download")
    await window.by("csv").click()
    const [head, ...lines] = (await readFile(await (await downloading).path(), "utf8")).trim().split(/\r?\n/).map(line => line.split(","))
    const sum = name => lines.reduce((total, line) => total + Number(line[head.indexOf(name)]), 0)
    assert.deepEqual([lines[0][head.indexOf("app")], sum("publications"), sum("deliveries")], [app.slug, 7, 14])
  })
})

/** A window at the login. */
function opened(t, { server = herald, ...options } = {}) {
  return atLogin(t, browser, server.origin, options)
}

/** A window in which the administrator is logged in. */
function admin(t, { server = herald, ...options } = {}) {
  return asAdmin(t, browser, server.origin, options)
}

/** A window that shows the live events of an app. */
function watching(t, slug = "test-app", { server = herald, ...options } = {}) {
  return atLive(t, browser, server.origin, slug, options)
}

function client(t) {
  const made = new Client({ ...LATEST, transport: "WebSocket" }, herald)
  t.after(() => made.disconnect())
  return made
}

/** A client's channel that has joined a topic. */
function connected(t, topic, payload = {}) {
  return client(t).joined(topic, { payload, events: ["msg", "hello"] })
}

function focused(window) {
  return window.page.evaluate(() => document.activeElement.textContent.trim())
}

/**
 * A page of another origin that runs a script and has phoenix.js under its npm name. `heard` returns the lines that it
 * has logged.
 */
async function pasted(t, script) {
  const phoenix = await readFile(`${ROOT}/static/phoenix.mjs`)
  const html = `<!doctype html><script type="importmap">{"imports":{"phoenix":"/phoenix.mjs"}}</script><script type="module">${script}</script>`
  const server = http.createServer((request, response) => {
    const isModule = request.url === "/phoenix.mjs"
    response.writeHead(200, { "content-type": isModule ? "text/javascript" : "text/html" }).end(isModule ? phoenix : html)
  })
  const port = await freePort()
  await new Promise(resolve => server.listen(port, "127.0.0.1", resolve))
  t.after(() => server.close())
  const page = await browser.blank()
  t.after(() => page.context().close())
  const heard = []
  page.on("console", async message => {
    const words = await Promise.all(message.args().map(arg => arg.jsonValue()))
    heard.push(words.map(word => (typeof word === "string" ? word : JSON.stringify(word))).join(" "))
  })
  await page.goto(`http://127.0.0.1:${port}/`)
  return { heard: async () => heard }
}
