// A headless Chromium as Debian packages it, and the actions of a person on the demo page.

import { existsSync, rmSync } from "node:fs"
import { mkdtemp, rm } from "node:fs/promises"
import os from "node:os"
import path from "node:path"
import { chromium } from "playwright-core"
import { screenshot } from "./screenshot.mjs"
import { DEADLINE_MS } from "./wait.mjs"

/**
 * The browsers in the order of preference: the headless shell takes a third of the processor time of the full Chromium.
 */
const INSTALLED = ["/usr/bin/chromium-headless-shell", "/usr/bin/chromium"]
const CHROMIUM = process.env.HERALD_CHROMIUM ?? INSTALLED.find(existsSync) ?? INSTALLED[0]

/** The time for which every request of a page waits before it is sent. */
const DELAY_MS = Number(process.env.HERALD_BROWSER_DELAY_MS ?? 0)

const HOUR_MS = 3_600_000

/**
 * A host name that Chromium resolves to this machine. Unlike pages of `localhost`, its pages are not secure contexts.
 */
export const OTHER_HOST = "herald.test"
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-crash-reporter",
  `--host-resolver-rules=MAP ${OTHER_HOST} 127.0.0.1`,
]

export class Browser {
  static async launch() {
    const profile = await mkdtemp(path.join(os.tmpdir(), "herald-chromium-"))
    process.on("exit", () => rmSync(profile, { recursive: true, force: true }))
    // Playwright gives each launch a new profile. These variables keep it, and all other files, in this folder.
    const env = { ...process.env, TMPDIR: profile, HOME: profile, XDG_CONFIG_HOME: profile, XDG_CACHE_HOME: profile }
    const browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, args: FLAGS, env, timeout: 30_000 })
    return new Browser(browser, profile)
  }

  constructor(browser, profile) {
    Object.assign(this, { browser, profile })
  }

  /** Opens the demo page in a new window. */
  async open(url, options = {}) {
    const page = await this.blank({ reducedMotion: "reduce", ...options })
    const window = new DemoPage(page)
    await page.goto(url)
    return window
  }

  /** Opens any page in a new window. */
  async tab(url) {
    const page = await this.blank()
    await page.goto(url)
    return page
  }

  /** An empty window with its own storage and its own connections. */
  async blank(options = {}) {
    const context = await this.browser.newContext(options)
    context.setDefaultTimeout(DEADLINE_MS)
    if (DELAY_MS > 0) await context.route("**", route => setTimeout(() => route.continue().catch(() => {}), DELAY_MS))
    return context.newPage()
  }

  async close() {
    await this.browser.close()
    await rm(this.profile, { recursive: true, force: true })
  }
}

/**
 * Stops the clock of a page: from now on its timers fire only while `page.clock.runFor` lets time pass. A test whose page
 * waits for a timer thus does not depend on how fast the machine is.
 *
 * Playwright can stop a clock only at a time that is still to come, so the page's clock jumps ahead by an hour. Timers
 * that are due by then fire once.
 */
export async function stopClock(page) {
  const now = Date.now()
  await page.clock.install({ time: now })
  await page.clock.pauseAt(now + HOUR_MS)
}

/** One window that shows the demo page. */
export class DemoPage {
  constructor(page) {
    this.page = page
    this.complaints = []
    // Chromium itself reports a lost connection; every other error is a fault of the page.
    page.on("console", message => {
      if (message.type() === "error" && !/WebSocket connection|ERR_CONNECTION/.test(message.text())) this.complaints.push(message.text())
    })
    page.on("pageerror", error => this.complaints.push(String(error)))
  }

  by(testid) {
    return this.page.getByTestId(testid)
  }

  /** Waits until the connection's state is `state`. */
  async is(state) {
    await this.page.locator(`[data-testid="state"][data-state="${state}"]`).waitFor()
  }

  async privateIs(state) {
    await this.page.locator(`[data-testid="private-state"][data-state="${state}"]`).waitFor()
  }

  async send({ name, message, broadcast = false }) {
    await this.by("name").fill(name)
    await this.by("message").fill(message)
    await this.by("broadcast").setChecked(broadcast)
    await this.by("send").click()
  }

  /** Waits for the entry whose text is exactly `message`, and returns what it shows. */
  async entry(message, feed = "feed") {
    const entries = this.by(feed).getByTestId("entry")
    const entry = entries.filter({ has: this.page.locator(".entry-text", { hasText: exactly(message) }) }).first()
    await entry.waitFor()
    return entry.evaluate(shown => {
      const text = selector => shown.querySelector(selector)?.textContent ?? null
      return {
        kind: shown.dataset.kind,
        event: text(".entry-event"),
        where: text(".badge, .entry-where"),
        name: text(".entry-name"),
        message: text(".entry-text"),
        markup: shown.querySelectorAll(".entry-text *, .entry-name *, .entry-event *, .entry-channel *").length,
      }
    })
  }

  /** The texts of the visible entries, from the top. */
  async texts(feed = "feed") {
    return this.by(feed).locator(".entry-text:visible").allTextContents()
  }

  /** The texts of the entries that are marked as recovered, from the top. */
  recovered(feed = "feed") {
    return this.by(feed).locator(".entry:has(.recovered) .entry-text").allTextContents()
  }

  /** Fills in the private panel and joins. */
  async joinPrivately({ topic, token, csrf }) {
    if (topic) await this.by("private-topic").fill(topic)
    await this.by("private-token").fill(token)
    if (csrf) {
      await this.by("private-csrf-toggle").click()
      await this.by("private-csrf").fill(csrf)
    }
    await this.by("private-join").click()
  }

  /** Stops the page's clock; `passes` lets time pass. */
  stopClock() {
    return stopClock(this.page)
  }

  /** Lets `ms` milliseconds pass on the page's clock, which must be stopped. */
  passes(ms) {
    return this.page.clock.runFor(ms)
  }

  screenshot(name) {
    return screenshot(this.page, name)
  }

  close() {
    return this.page.context().close()
  }
}

function exactly(text) {
  return new RegExp(`^${text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}$`)
}
