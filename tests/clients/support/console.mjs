// The developer console of an open page. Each block sees the variables of the blocks before it, and `await` works at
// the top level.

import assert from "node:assert/strict"
import { eventually, Inbox } from "./wait.mjs"

export class Console {
  static async open(page) {
    return new Console(page, await page.context().newCDPSession(page))
  }

  constructor(page, session) {
    Object.assign(this, { page, session })
    /** The lines that the page has logged. */
    this.heard = new Inbox("the console of the page")
    page.on("console", message => this.heard.put(message.text()))
  }

  /** Pastes a block of code, and waits until it has run. */
  paste(code) {
    return this.evaluate({ expression: code, replMode: true, awaitPromise: true })
  }

  /** The value of an expression. */
  value(expression) {
    return this.evaluate({ expression, returnByValue: true })
  }

  async evaluate(options) {
    const { result, exceptionDetails } = await this.session.send("Runtime.evaluate", options)
    assert.equal(exceptionDetails?.exception?.description ?? exceptionDetails, undefined, options.expression)
    return result.value
  }

  /** Waits until all channels of the console's `socket` are joined, if there already is a `socket`. */
  async keepsItsJoins() {
    const missing = () => this.value(`typeof socket === "undefined" ? [] : socket.channels.filter(channel => channel.state !== "joined").map(channel => channel.topic)`)
    await eventually(async () => (await missing()).length === 0, "every channel in the console to be joined")
  }
}
