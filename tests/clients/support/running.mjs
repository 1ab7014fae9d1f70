// The server and the browser that all tests of a file share.

import { after, before } from "node:test"
import { Browser } from "./browser.mjs"
import { Herald } from "./herald.mjs"

/**
 * Starts a server and a browser before the tests of a file, hands both to `use`, and stops them after the tests. The
 * `before` hooks of a file run at the same time, so `use` must also do everything else that the tests need first.
 */
export function withServerAndBrowser(use) {
  let herald, browser
  before(async () => {
    // One after the other: if the first fails, the second is not started.
    herald = await Herald.start()
    browser = await Browser.launch()
    await use({ herald, browser })
  })
  after(async () => {
    await browser?.close()
    await herald?.close()
  })
}
