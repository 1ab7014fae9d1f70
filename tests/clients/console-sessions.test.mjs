// The session of the console: one that ends while a person works, another login in the same browser, and a server that cannot
// tell whether there is a session.

import assert from "node:assert/strict"
import { test } from "node:test"
import { asAdmin, atLogin, ConsolePage } from "./support/console-page.mjs"
import { ADMIN, TEST_APP } from "./support/herald.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { eventually } from "./support/wait.mjs"

let herald, browser
withServerAndBrowser(started => ({ herald, browser } = started))

test("another login in the same browser takes the page over, and the page says so", async t => {
  const [one, other] = [await herald.createApp({ name: "One login" }), await herald.createApp({ name: "Other login" })]
  const window = await opened(t)
  await window.loginAsApp(one)
  await window.liveIs("live")
  await window.loginElsewhere({ key: other.key, secret: other.secret })
  await window.go(`/apps/${one.slug}/connections`)
  await window.by("notice").getByText(`Somebody has logged in as the app ${other.slug} in this browser.`).waitFor()
  await eventually(() => window.path() === `/apps/${other.slug}/live`, "the view of the other login")
  await window.liveIs("live")
  assert.equal(await window.page.locator("#account-name").textContent(), other.slug)

  const of = await admin(t)
  await of.loginElsewhere({ key: one.key, secret: one.secret })
  await of.go("/apps")
  await of.by("notice").getByText(`Somebody has logged in as the app ${one.slug} in this browser.`).waitFor()
  await of.liveIs("live")
  await of.page.locator("#notice-close").click()
  assert.equal(await of.by("notice").isVisible(), false)
})

test("a login or a logout in another window shows in this one at once", async t => {
  const app = await herald.createApp({ name: "Two windows" })
  const window = await opened(t)
  const other = await window.another()
  await window.loginAsApp(app)
  await window.liveIs("live")
  await other.loginAsAdmin()
  await window.by("notice").getByText("Somebody has logged in as the administrator in this browser.").waitFor()
  await window.by("overview").waitFor()
  assert.equal(await window.page.locator("#account-name").textContent(), "Administrator")
  // The list of apps asks the server only once.
  await window.go("/apps")
  await window.by("apps").waitFor()
  await other.by("logout").click()
  await window.heading("Log in").waitFor()
  await window.by("notice").getByText("Your session has ended.").waitFor()
})

test("a login that this window has not heard of shows when the person returns to it", async t => {
  const app = await herald.createApp({ name: "Returned to" })
  const window = await opened(t)
  await window.loginAsApp(app)
  await window.liveIs("live")
  await window.loginElsewhere({ user: ADMIN.username, password: ADMIN.password })
  await window.page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")))
  await window.by("notice").getByText("Somebody has logged in as the administrator in this browser.").waitFor()
})

test("the outcomes of the former login are not shown to the next one", async t => {
  const app = await herald.createApp({ name: "Next login" })
  const window = await admin(t)
  const held = await window.hold("**/api/admin/apps")
  const logInAsApp = async () => {
    await window.by("logout").click()
    await window.heading("Log in").waitFor()
    await window.loginAsApp(app)
    await window.liveIs("live")
  }
  const isSilent = async (call, answer) => {
    await window.answered(call, answer)
    assert.equal(await window.by("notice").isVisible(), false)
  }
  await window.go("/new-app")
  await window.by("name").fill("Of the former login")
  await window.by("create-submit").click()
  const creation = await held.call(0)
  await logInAsApp()
  await isSilent(creation, { response: await creation.fetch() })

  await window.go(`/apps/${app.slug}/settings`)
  await window.by("authorized_only").check()
  const saved = await window.hold(`**/api/apps/${app.slug}`)
  await window.by("settings-submit").click()
  const change = await saved.call(0)
  await window.by("logout").click()
  await window.heading("Log in").waitFor()
  await isSilent(change, { status: 503, contentType: "application/json", body: "{}" })
})

test("a session that ends while a form is sent keeps the form and the address for the next login", async t => {
  const window = await admin(t)
  const address = "/apps/test-app/send?scope=private&channel=room-9"
  const send = async typed => {
    // No other call is under way then, whose refusal would end the session before the form is sent.
    await window.page.locator(".app-head .badge").waitFor()
    await window.by("payload").fill(typed)
    await window.page.context().clearCookies()
    await window.by("send-submit").click()
    await window.heading("Log in").waitFor()
    await window.by("notice").getByText("Your session has ended.").waitFor()
  }
  await window.go(address)
  await send(`{"typed":"by the administrator"}`)
  await window.loginAsAdmin()
  await window.by("send").waitFor()
  assert.equal(window.path(), address)
  assert.equal(await window.by("topic").inputValue(), "room-9")
  assert.equal(await window.by("payload").inputValue(), `{"typed":"by the administrator"}`)
  assert.equal(await window.by("notice").isVisible(), false)

  await send(`{"typed":"for nobody else"}`)
  await window.loginAsApp(TEST_APP)
  await window.by("send").waitFor()
  assert.equal(window.path(), address)
  assert.ok(!(await window.by("payload").inputValue()).includes("nobody else"), "another party does not see it")
})

test("the settings that were being saved are filled in again after the login", async t => {
  const app = await herald.createApp({ name: "Saved by two" })
  const window = await admin(t)
  await window.go(`/apps/${app.slug}/settings`)
  // Fields that have been saved count as unchanged.
  await window.by("history_publications").fill("3")
  await window.by("settings-submit").click()
  await window.by("settings-note").getByText("Saved.").waitFor()
  await window.by("history_seconds").fill("77")
  await window.by("subscription_count").uncheck()
  await window.page.context().clearCookies()
  await window.by("settings-submit").click()
  await window.heading("Log in").waitFor()
  await herald.updateApp(app.slug, { client_events: "all", history_publications: 5, authorized_only: true })
  await window.loginAsAdmin()
  await window.by("settings-note").getByText("Your inputs are filled in again.").waitFor()
  assert.equal(await window.by("history_seconds").inputValue(), "77")
  assert.equal(await window.by("subscription_count").isChecked(), false)
  await window.by("settings-submit").click()
  await window.by("settings-note").getByText("Saved.").waitFor()
  const { data } = await herald.ask("GET", `/api/apps/${app.slug}`, { username: app.key, password: app.secret })
  const { client_events, history_publications, authorized_only, history_seconds, subscription_count } = data
  const expected = { client_events: "all", history_publications: 5, authorized_only: true, history_seconds: 77, subscription_count: false }
  assert.deepEqual({ client_events, history_publications, authorized_only, history_seconds, subscription_count }, expected)
})

test("a refusal of an earlier session does not end the present one", async t => {
  const window = await admin(t)
  const held = await window.hold(/test-app\/usage/)
  await window.go("/apps/test-app/usage")
  const late = await held.call(0)
  await window.by("logout").click()
  await window.heading("Log in").waitFor()
  await window.loginAsAdmin()
  await window.by("overview").waitFor()
  await late.fulfill({ status: 401, contentType: "application/json", body: `{"errors":{"detail":"authentication required"}}` })
  await window.go("/apps")
  await window.by("apps").waitFor()
  assert.equal(window.path(), "/apps")
})

test("a server that cannot tell whether there is a session is asked again, and shows no login", async t => {
  const window = await admin(t)
  await window.go("/apps")
  await window.by("apps").waitFor()
  await window.answer("**/console/session", 503)
  await window.page.reload()
  await window.by("notice").getByText("The page asks again by itself.").waitFor()
  assert.equal(await window.heading("Log in").count(), 0)
  await window.page.unroute("**/console/session")
  await window.by("apps").waitFor()
  assert.equal(await window.by("notice").isVisible(), false)
})

test("a logout that fails says so, and the session goes on", async t => {
  const window = await admin(t)
  await window.answer("**/console/logout", 503)
  await window.by("logout").click()
  await window.by("notice").getByText("The server cannot do this now.").waitFor()
  await window.page.unroute("**/console/logout")
  await window.by("logout").click()
  await window.heading("Log in").waitFor()
  assert.equal(await window.by("notice").isVisible(), false)
})

test("refused joins of the live feed wait for one token together, and less and less often", async t => {
  const window = await ConsolePage.open(browser, herald.origin)
  t.after(() => window.close())
  await window.loginAsAdmin()
  await window.by("overview").waitFor()
  let asked = 0
  let refused = 0
  await window.page.route("**/console/live", async route => {
    asked += 1
    if (asked > 1) return route.fulfill({ status: 503, body: "{}" })
    const answer = await route.fetch()
    const { data } = await answer.json()
    await route.fulfill({ response: answer, json: { data: { ...data, token: "not.a.token" } } })
  })
  window.page.on("websocket", socket =>
    socket.on("framereceived", ({ payload }) => {
      if (String(payload).includes(`"status":"error"`)) refused += 1
    }),
  )
  await window.go("/apps/test-app/live")
  await eventually(() => refused >= 4, "four refused joins")
  assert.ok(asked <= 6, `${asked} requests for a token`)
})

/** A window at the login. */
function opened(t) {
  return atLogin(t, browser, herald.origin)
}

/** A window in which the administrator is logged in. */
function admin(t) {
  return asAdmin(t, browser, herald.origin)
}
