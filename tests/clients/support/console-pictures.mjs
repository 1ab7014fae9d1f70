// The pictures of the console in docs/console.md: the overview and the live events, light and dark.

import { ConsolePage } from "./console-page.mjs"
import { Scene } from "./console-scene.mjs"

const SHOWN = { viewport: { width: 1120, height: 816 }, deviceScaleFactor: 1.5 }
/** The time in which the server is busy before the pictures are taken, so that its charts have something to show. */
const BUSY_S = 240

/** Takes the pictures with the console of `herald`; `save(name, page)` is called for each. All figures are the server's own. */
export async function takeConsolePictures(browser, herald, save) {
  const scene = await Scene.set(herald)
  try {
    await scene.beBusy(BUSY_S)
    for (const colorScheme of ["light", "dark"]) {
      const window = await ConsolePage.open(browser, herald.origin, { colorScheme, ...SHOWN })
      await window.loginAsAdmin()
      await window.by("nodes").getByTestId("row").first().waitFor()
      await save(`console-overview-${colorScheme}`, window.page)
      await window.go(`/apps/${scene.app.slug}/live`)
      await window.liveIs("live")
      await scene.happen(16)
      await window.by("events").locator(`.event:visible[data-kind=leave]`).first().waitFor()
      await window.page.getByText("deliveries/s").waitFor()
      await save(`console-live-${colorScheme}`, window.page)
      await window.close()
    }
  } finally {
    await scene.close()
  }
}
