// Takes the pictures that the README and docs/console.md show: docs/demo-*.webp and docs/console-*.webp.
//
//   scripts/picture
//
// The pages are those of a running server. The clock of the demo page is set by this script, so that two of its pictures
// differ only where the page differs.

import { writeFile } from "node:fs/promises"
import path from "node:path"
import { Browser, DemoPage } from "./browser.mjs"
import { takeConsolePictures } from "./console-pictures.mjs"
import { Herald } from "./herald.mjs"
import { ROOT } from "./markdown.mjs"

const NOON = new Date(2026, 0, 15, 12, 0).getTime()
const VIEWPORT = { width: 1120, height: 816 }
const QUALITY = 80

const herald = await Herald.start()
const browser = await Browser.launch()
try {
  for (const colorScheme of ["light", "dark"]) {
    const window = await opened(colorScheme)
    await fill(window)
    await save(`demo-${colorScheme}`, window.page)
    await window.close()
  }
  await takeConsolePictures(browser, herald, save)
} finally {
  await browser.close()
  await herald.close()
}

async function save(name, page) {
  const file = path.join(ROOT, `docs/${name}.webp`)
  await writeFile(file, await picture(page))
  console.log(path.relative(process.cwd(), file))
}

async function opened(colorScheme) {
  const page = await browser.blank({ colorScheme, reducedMotion: "reduce", viewport: VIEWPORT, deviceScaleFactor: 1.5 })
  await page.clock.setFixedTime(NOON)
  const window = new DemoPage(page)
  await page.goto(`${herald.origin}/`)
  await window.is("live")
  return window
}

/** Fills the page with events: two for its channel, one for all channels, and one that it sends itself. */
async function fill(window) {
  await arrives(window, 0, { topic: "foo-topic", payload: { name: "Rails", message: "Order 4711 has been paid." } })
  await arrives(window, 9, { topic: "#general", payload: { name: "Rails", message: "Version 42 is out: please reload." } })
  await arrives(window, 24, { topic: "foo-topic", payload: { name: "curl", message: "Hello from a terminal" } })
  await window.page.clock.setFixedTime(NOON + 31_000)
  await window.send({ name: "Ada", message: "Hello from a browser" })
  await window.entry("Hello from a browser")
  await window.page.mouse.move(0, 0)
  await window.page.evaluate(() => {
    document.activeElement.blur()
    scrollTo(0, 0)
  })
}

/** Triggers an event at `second` seconds after noon by the page's clock, and waits until the page shows it. */
async function arrives(window, second, event) {
  await window.page.clock.setFixedTime(NOON + 1000 * second)
  await herald.trigger(event)
  await window.entry(event.payload.message)
}

/** A picture of the page as WebP, which Playwright itself cannot make. */
async function picture(page) {
  const session = await page.context().newCDPSession(page)
  const { data } = await session.send("Page.captureScreenshot", { format: "webp", quality: QUALITY })
  return Buffer.from(data, "base64")
}
