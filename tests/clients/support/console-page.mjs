// One window that shows Herald's console, and the actions of a person in it.

import assert from "node:assert/strict"
import { ADMIN } from "./herald.mjs"
import { screenshot } from "./screenshot.mjs"
import { eventually } from "./wait.mjs"

/** The sizes of the window in which every view is checked. */
export const VIEWPORTS = { phone: { width: 390, height: 844 }, tablet: { width: 768, height: 1024 }, desktop: { width: 1280, height: 860 } }

/** Chromium's own messages about a lost connection and about an answer that is not a success. */
const BY_THE_BROWSER = /WebSocket connection|ERR_CONNECTION|Failed to load resource/

export class ConsolePage {
  /** Opens a window at `origin`, with the options of a browser's context. */
  static async open(browser, origin, options = {}) {
    const page = await browser.blank({ reducedMotion: "reduce", viewport: VIEWPORTS.desktop, ...options })
    const window = new ConsolePage(page, origin)
    await page.addInitScript(observeShifts)
    await page.addInitScript(() => document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => console.error(`violates ${violatedDirective}: ${blockedURI}`)))
    await page.goto(`${origin}/console`)
    return window
  }

  /** Opens another window of the same browser: both share the cookie. */
  async another() {
    const window = new ConsolePage(await this.page.context().newPage(), this.origin)
    await window.page.goto(`${this.origin}/console`)
    return window
  }

  constructor(page, origin) {
    Object.assign(this, { page, origin, complaints: [] })
    page.on("console", message => {
      if (message.type() === "error" && !BY_THE_BROWSER.test(message.text())) this.complaints.push(message.text())
    })
    page.on("pageerror", error => this.complaints.push(String(error)))
  }

  by(testid) {
    return this.page.getByTestId(testid)
  }

  heading(name) {
    return this.page.getByRole("heading", { name, level: 1 })
  }

  async loginAsAdmin({ username, password } = ADMIN) {
    await this.by("user").fill(username)
    await this.by("password").fill(password)
    await this.by("login-submit").click()
  }

  async loginAsApp({ key, secret }) {
    await this.by("login-app").check({ force: true })
    await this.by("key").fill(key)
    await this.by("secret").fill(secret)
    await this.by("login-submit").click()
  }

  /**
   * Goes to a path of the console, such as `/apps`, as a link would. Chromium reports the new address before it returns
   * from the script, so afterwards `path` is this one, or the one to which the console has led from there.
   */
  async go(to) {
    await this.page.evaluate(to => (location.hash = to), to)
  }

  /**
   * Shows the app's secret in its settings, and returns it. The snippets have it by then, because the console writes it
   * to both at once.
   */
  async showSecret() {
    await this.by("show-secret").click()
    return this.by("secret").textContent()
  }

  /** Holds the page's calls to the paths that match, until the test lets each of them go on or answers it. */
  async hold(pattern) {
    const calls = []
    await this.page.route(pattern, route => calls.push(route))
    return {
      /** The nth of the held calls, counted from 0: a route of Playwright's. */
      call: nth => eventually(() => calls[nth], `call ${nth} to ${pattern}`),
      end: () => this.page.unroute(pattern),
    }
  }

  /** Answers a held call, and waits until the page has dealt with the answer. */
  async answered(call, answer) {
    const isItsOwn = response => response.request() === call.request()
    const [response] = await Promise.all([this.page.waitForResponse(isItsOwn), call.fulfill(answer)])
    await response.finished()
    await this.page.evaluate(() => new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve))))
  }

  /** Answers the page's calls to the paths that match with a status and a text, or breaks them if there is no status. */
  async answer(pattern, status, text = `{"errors":{"detail":"service unavailable, try again later"}}`) {
    await this.page.route(pattern, route => (status ? route.fulfill({ status, contentType: "application/json", body: text }) : route.abort()))
  }

  /** Lets the page wait a hundredth of the time for an answer, and for the rest of an answer. */
  async hurry() {
    await this.page.evaluate(() => {
      const later = setTimeout
      window.setTimeout = (act, ms, ...others) => later(act, ms >= 15_000 ? ms / 100 : ms, ...others)
    })
  }

  /** Logs in with a call of its own, which no window hears of. */
  async loginElsewhere(credentials) {
    const headers = { origin: this.origin }
    const answer = await this.page.context().request.post(`${this.origin}/console/login`, { data: credentials, headers })
    assert.equal(answer.status(), 200)
  }

  /** The path of the console in the window's address. Playwright knows it also while a page is being loaded. */
  path() {
    return new URL(this.page.url()).hash.slice(1)
  }

  async liveIs(state) {
    await this.page.locator(`[data-testid="live-state"][data-state="${state}"]`).waitFor()
  }

  /** The visible rows of the live list, from the top. */
  events() {
    return this.by("events").locator(".event:visible").evaluateAll(rows => rows.map(row => ({
      kind: row.dataset.kind,
      topic: row.querySelector(".event-topic").textContent,
      name: row.querySelector(".event-name").textContent,
      facts: row.querySelector(".event-facts").textContent,
    })))
  }

  /** The sum of the layout shifts since the last call that no input has caused; 0 if nothing has moved by itself. */
  shifts() {
    return this.page.evaluate(() => window.takeShifts())
  }

  /** The number of pixels by which the page is wider than the window. */
  overflow() {
    return this.page.evaluate(() => Math.max(0, document.documentElement.scrollWidth - window.innerWidth))
  }

  screenshot(name) {
    return screenshot(this.page, `console-${name}`)
  }

  close() {
    return this.page.context().close()
  }
}

/** Sums up the layout shifts that no input has caused. Runs in the page. */
function observeShifts() {
  let sum = 0
  const observer = new PerformanceObserver(list => list.getEntries().forEach(add))
  const add = shift => {
    if (!shift.hadRecentInput) sum += shift.value
  }
  observer.observe({ type: "layout-shift", buffered: true })
  window.takeShifts = () => {
    observer.takeRecords().forEach(add)
    const taken = sum
    sum = 0
    return taken
  }
}

/**
 * A window at the login. The test fails if the window has logged an error or a violation of the content security policy
 * by its end.
 */
export async function atLogin(t, browser, origin, options) {
  const window = await ConsolePage.open(browser, origin, options)
  t.after(async () => {
    await window.close()
    assert.deepEqual(window.complaints, [])
  })
  await window.heading("Log in").waitFor()
  return window
}

/** A window in which the administrator is logged in. */
export async function asAdmin(t, browser, origin, options) {
  const window = await atLogin(t, browser, origin, options)
  await window.loginAsAdmin()
  await window.by("overview").waitFor()
  return window
}

/** A window that shows the administrator the live events of an app. */
export async function atLive(t, browser, origin, slug, options) {
  const window = await asAdmin(t, browser, origin, options)
  await window.go(`/apps/${slug}/live`)
  await window.liveIs("live")
  return window
}
