// Pages with one generation of phoenix.js and a driver: windows in node, or tabs of Chromium.

import path from "node:path"
import { fileURLToPath } from "node:url"
import { browserGlobals, published, run } from "./window.mjs"
import { pageRequests } from "./xhr.mjs"

const DRIVER = path.join(path.dirname(fileURLToPath(import.meta.url)), "driver.js")

/** The common part of both kinds: it passes each report of the driver to the client whose number the report has. */
class Page {
  constructor() {
    this.clients = new Map()
    this.numbers = 0
  }

  number() {
    return (this.numbers += 1)
  }

  told(text) {
    const [client, ...words] = JSON.parse(text)
    this.clients.get(client)?.hear(...words)
  }
}

/** A window in this process, without a browser. */
export class NodePage extends Page {
  constructor(generation) {
    super()
    const { XMLHttpRequest, close } = pageRequests()
    this.stopRequests = close
    this.window = browserGlobals({ XMLHttpRequest, tell: text => this.told(text) })
    run(published(generation), this.window)
    run(DRIVER, this.window)
  }

  /** Sends a command to the driver. */
  async call(method, ...words) {
    return this.window.driver[method](...words)
  }

  async close() {
    this.stopRequests()
  }
}

/** A tab of Chromium with a page of `herald`. */
export class ChromiumPage extends Page {
  static async open(browser, generation, herald) {
    const page = new ChromiumPage()
    // Any page of that origin works if its policy lets the test add a script.
    const tab = await browser.tab(`${herald.origin}/health`)
    await tab.exposeFunction("tell", text => page.told(text))
    await tab.addScriptTag({ content: "var module = { exports: {} }, exports = module.exports" })
    await tab.addScriptTag({ path: published(generation) })
    await tab.addScriptTag({ path: DRIVER })
    return Object.assign(page, { tab })
  }

  call(method, ...words) {
    return this.tab.evaluate(([method, words]) => window.driver[method](...words), [method, words])
  }

  close() {
    return this.tab.context().close()
  }
}
