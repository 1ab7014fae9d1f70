// How the console looks: every view at three widths, light and dark, with a screenshot if wanted. Nothing is wider than the
// window, no text is too faint, everything that can be used has a name and shows the focus, and nothing moves by itself.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { ConsolePage, VIEWPORTS } from "./support/console-page.mjs"
import { Scene } from "./support/console-scene.mjs"
import { CONTRAST_MIN, contrasts } from "./support/contrast.mjs"
import { Herald } from "./support/herald.mjs"
import { unnamed } from "./support/names.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { eventually } from "./support/wait.mjs"

/** The longest facts of a busy app whose list is used, filtered and paused. */
const FACTS_MAX = {
  rates: "12,345 sessions, 12,345 publications/s, 123,456 deliveries/s",
  shown: "showing 100 of 1,234,567 · 1,000 filtered out · 123,456 left out by the server, which sends a sample · 1,000 waiting while you use the list",
}

/** The views: the path of each, and a function that waits until the view shows its content. */
const VIEWS = [
  { name: "overview", path: () => "/overview", ready: window => window.by("nodes").getByTestId("row").first().waitFor() },
  { name: "apps", path: () => "/apps", ready: window => window.by("apps").getByTestId("row").first().waitFor() },
  { name: "new-app", path: () => "/new-app", ready: window => window.by("create").waitFor() },
  { name: "live", path: slug => `/apps/${slug}/live`, ready: isBusy },
  { name: "payload", path: slug => `/apps/${slug}/live`, ready: showsPayload },
  { name: "live-empty", path: (_, empty) => `/apps/${empty}/live`, ready: isEmpty },
  { name: "send", path: slug => `/apps/${slug}/send`, ready: window => window.by("send").waitFor() },
  { name: "channels", path: slug => `/apps/${slug}/channels`, ready: window => window.by("channels-table").getByTestId("row").first().waitFor() },
  { name: "channels-empty", path: (_, empty) => `/apps/${empty}/channels`, ready: window => window.page.getByText("Nobody has joined a topic").waitFor() },
  { name: "channel", path: slug => `/apps/${slug}/channels/presence/team`, ready: showsHistory },
  { name: "connections", path: slug => `/apps/${slug}/connections`, ready: window => window.by("connections-table").getByTestId("row").first().waitFor() },
  { name: "connections-empty", path: (_, empty) => `/apps/${empty}/connections`, ready: window => window.page.getByText("No session has joined").waitFor() },
  { name: "usage", path: slug => `/apps/${slug}/usage`, ready: showsNumbers },
  { name: "inactive", path: (_, __, ___, inactive) => `/apps/${inactive}/settings`, ready: tellsWhatHappened },
  { name: "audit", path: slug => `/apps/${slug}/audit`, ready: window => window.by("audit-table").getByTestId("row").first().waitFor() },
  { name: "settings", path: slug => `/apps/${slug}/settings`, ready: opensRotation },
  { name: "delete", path: slug => `/apps/${slug}/settings`, ready: asksBeforeDelete },
  { name: "live-long", path: (_, __, long) => `/apps/${long}/live`, ready: isLong },
  { name: "channels-long", path: (_, __, long) => `/apps/${long}/channels`, ready: window => window.by("channels-table").getByTestId("row").first().waitFor() },
  { name: "channel-long", path: (_, __, long) => `/apps/${long}/channels/presence/${scene.longChannel}`, ready: window => window.by("channel").getByText("1 member").waitFor() },
  { name: "connections-long", path: (_, __, long) => `/apps/${long}/connections`, ready: window => window.by("connections-table").getByTestId("row").first().waitFor() },
  { name: "no-app", path: () => "/apps/no-such-app/connections", ready: window => window.by("no-app").waitFor() },
  { name: "api", path: () => "/api", ready: window => window.by("api").locator(".call, .empty").first().waitFor() },
]

let herald, browser, scene
// The scene ends before its server, because this hook is declared first.
after(() => scene?.close())
withServerAndBrowser(async started => {
  ;({ herald, browser } = started)
  scene = await Scene.set(herald)
})

for (const [size, viewport] of Object.entries(VIEWPORTS)) {
  for (const colorScheme of ["light", "dark"]) {
    describe(`on a ${size}, ${colorScheme}`, () => {
      let window
      before(async () => {
        window = await ConsolePage.open(browser, herald.origin, { viewport, colorScheme })
      })
      after(async () => {
        await window?.close()
      })

      test("the login", async () => {
        await window.by("login").waitFor()
        await look(window, `login-${size}-${colorScheme}`)
        await window.loginAsAdmin()
        await window.by("overview").waitFor()
      })

      for (const { name, path, ready } of VIEWS) {
        test(name, async () => {
          await window.go(path(scene.app.slug, scene.empty.slug, scene.long.slug, scene.inactive.slug))
          await ready(window)
          await look(window, `${name}-${size}-${colorScheme}`)
          await window.page.keyboard.press("Escape")
        })
      }

      test("no error was logged", () => assert.deepEqual(window.complaints, []))
    })
  }
}

test("the overview does not move while its numbers change", async t => {
  const window = await ConsolePage.open(browser, herald.origin)
  t.after(() => window.close())
  await window.loginAsAdmin()
  await window.by("nodes").getByTestId("row").first().waitFor()
  await window.shifts()
  const numbers = async () => (await window.by("tile").allTextContents()).join()
  for (let changes = 0; changes < 2; changes += 1) {
    const before = await numbers()
    await scene.happen(50)
    await eventually(async () => (await numbers()) !== before, "other numbers")
  }
  await window.page.evaluate(() => new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve))))
  assert.equal(await window.shifts(), 0)
})

test("everything that the keyboard reaches shows the focus", async t => {
  const window = await ConsolePage.open(browser, herald.origin)
  t.after(() => window.close())
  await window.loginAsAdmin()
  await window.by("overview").waitFor()
  for (const [tab, ready] of [["live", "pause"], ["usage", "csv"], ["settings", "delete"]]) {
    await window.go(`/apps/${scene.app.slug}/${tab}`)
    await window.by(ready).waitFor()
    await window.page.locator("#skip").focus()
    const seen = []
    for (let stops = 0; stops < 100; stops += 1) {
      await window.page.keyboard.press("Tab")
      const stop = await window.page.evaluate(focusShown)
      if (stop === null || stop.nth === seen[0]?.nth) break
      seen.push(stop)
    }
    assert.ok(seen.length > 12, `${tab}: ${seen.length} stops`)
    assert.deepEqual(seen.filter(({ isShown }) => !isShown), [], tab)
  }
})

test("nothing is animated where reduced motion is wanted, and something is elsewhere", async t => {
  const server = await Herald.start()
  t.after(() => server.close())
  const windows = await Promise.all(["reduce", "no-preference"].map(reducedMotion => ConsolePage.open(browser, server.origin, { reducedMotion })))
  t.after(() => Promise.all(windows.map(window => window.close())))
  for (const window of windows) {
    await window.loginAsAdmin()
    await window.by("overview").waitFor()
    await window.go("/apps/test-app/live")
    await window.liveIs("live")
  }
  await server.stop()
  const moving = []
  for (const window of windows) {
    await window.liveIs("reconnecting")
    moving.push(await window.page.evaluate(() => document.getAnimations().map(({ animationName, transitionProperty }) => animationName ?? transitionProperty)))
  }
  const [reduced, usual] = moving
  assert.deepEqual(reduced, [])
  // Beside this animation of the state, transitions of colours may still be running.
  assert.ok(usual.includes("breathe"), `only these move: ${usual}`)
})

/** The element that has the focus: its place in the page, and whether an outline shows it. Runs in the page. */
function focusShown() {
  const focused = document.activeElement
  if (focused === document.body) return null
  // A segment of a choice is a transparent radio button; the text beside it shows the focus.
  const shown = [focused, focused.nextElementSibling].filter(Boolean).map(each => getComputedStyle(each))
  const isShown = shown.some(({ outlineStyle, outlineWidth }) => outlineStyle === "solid" && parseFloat(outlineWidth) >= 2)
  return { nth: [...document.querySelectorAll("*")].indexOf(focused), what: focused.outerHTML.slice(0, 80), isShown }
}

/** Checks the width, the names and the contrasts of a view, and saves a screenshot if screenshots are wanted. */
async function look(window, name) {
  await window.page.mouse.move(0, 0)
  await window.screenshot(name)
  assert.equal(await window.overflow(), 0, "the page scrolls sideways")
  assert.deepEqual(await unnamed(window.page), [])
  const measured = await contrasts(window.page)
  assert.ok(measured.length > 5, "the texts were found")
  const faint = measured.filter(({ ratio }) => ratio < CONTRAST_MIN).map(({ what, ratio }) => `${what} ${ratio.toFixed(2)}`)
  assert.deepEqual([...new Set(faint)], [])
}

/** Waits until the live list shows events of several kinds. */
async function isBusy(window) {
  await window.liveIs("live")
  await scene.happen(12)
  for (const kind of ["join", "refusal", "leave"]) await window.by("events").locator(`.event:visible[data-kind=${kind}]`).first().waitFor()
}

/** Waits for an event of the app with long names, and checks that its channel is visible beside the long slug. */
async function isLong(window) {
  await window.liveIs("live")
  await scene.happenAtLength()
  const row = window.by("events").locator(".event:visible[data-kind=publication]").first()
  await row.waitFor()
  const width = await row.locator(".event-topic > span:last-child").evaluate(channel => channel.clientWidth)
  assert.ok(width > 50, `the channel has ${width} pixels`)
  const hidden = await window.page.locator(".facts").evaluate((facts, { rates, shown }) => {
    facts.querySelector(".rates").textContent = rates
    facts.querySelector("[data-testid=shown]").textContent = shown
    return facts.scrollHeight - facts.clientHeight
  }, FACTS_MAX)
  assert.equal(hidden, 0, "the facts have room for their longest text")
}

/**
 * Waits for the live list of an app without events. The text comes first, because the view before it is live as well.
 */
async function isEmpty(window) {
  await window.page.getByText("Nothing has happened yet").waitFor()
  await window.liveIs("live")
}

async function showsPayload(window) {
  await isBusy(window)
  await window.by("pause").click()
  await window.page.getByRole("button", { name: "Payload" }).first().click()
  await window.by("payload").locator("pre").waitFor()
}

async function showsHistory(window) {
  await window.by("channel").getByText("3 members").waitFor()
  await window.by("show-history").click()
  await window.by("retained").nth(1).locator("summary").click()
}

async function showsNumbers(window) {
  await window.by("usage-numbers").click()
  await window.page.locator("canvas").nth(3).waitFor()
}

async function opensRotation(window) {
  await window.by("rotate-details").locator("summary").click()
}

/** Waits for the note of an app that is inactive, and for the reason why it cannot be activated now. */
async function tellsWhatHappened(window) {
  await window.by("app-note").waitFor()
  await window.answer(/api\/admin\/apps\/a-name/, 503)
  await window.by("activate").click()
  await window.by("notice").waitFor()
  await window.page.unroute(/api\/admin\/apps\/a-name/)
}

async function asksBeforeDelete(window) {
  await window.by("delete").click()
  await window.by("typed").waitFor()
}
