// Screenshots for people. No test compares them, and they would take a third of the time of the tests that take them.

import { mkdir } from "node:fs/promises"
import path from "node:path"

/** Saves a screenshot of the whole page if HERALD_SCREENSHOTS names a folder. */
export async function screenshot(page, name) {
  const folder = process.env.HERALD_SCREENSHOTS
  if (!folder) return
  await mkdir(folder, { recursive: true })
  await page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: true })
}
