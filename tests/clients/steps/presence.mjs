// The members that are present, in the state that each generation keeps.

import assert from "node:assert/strict"
import { LATEST, STAYS_AWAY } from "../support/generations.mjs"
import { step } from "../support/stage.mjs"
import { rejoined } from "./ending.mjs"

export const PRESENCE = [
  step("e161_e162_e163_e165 sees who is present", {
    not: ({ presence }) => !presence && "presence came with 1.2",

    async run(stage) {
      const topic = `presence:${stage.app.slug}:room`
      const bearing = sub => ({ payload: { guardian_token: stage.token({ sub, listen: ["presence:*"] }) }, events: [] })
      const me = await stage.connect().joined(topic, { ...bearing("me"), withPresence: true })
      await shows(me, { me: [undefined] })

      const guest = await stage.connectOther(LATEST).joined(topic, bearing("guest"))
      await shows(me, { me: [undefined], guest: [undefined] })

      guest.push("presence_metadata", { custom: "away" })
      await shows(me, { me: [undefined], guest: ["away"] })
      me.push("presence_metadata", { custom: { mood: "fine" } })
      await shows(me, { me: [{ mood: "fine" }], guest: ["away"] })

      const twin = await stage.connectOther(LATEST).joined(topic, bearing("guest"))
      await shows(me, { me: [{ mood: "fine" }], guest: ["away", undefined] })
      await guest.leave()
      await shows(me, { me: [{ mood: "fine" }], guest: [undefined] })
      await twin.client.disconnect()
      await shows(me, { me: [{ mood: "fine" }] })
    },
  }),

  step("e168 sees who is present after it has reconnected", {
    not: client => (!client.presence && "presence came with 1.2") || STAYS_AWAY(client),

    async run(stage) {
      const topic = `presence:${stage.app.slug}:again`
      const bearing = sub => ({ payload: { guardian_token: stage.token({ sub, listen: ["presence:*"] }) }, events: [] })
      const me = await stage.connect().joined(topic, { ...bearing("me"), withPresence: true })
      await stage.connectOther(LATEST).joined(topic, bearing("guest"))
      await shows(me, { me: [undefined], guest: [undefined] })

      await stage.herald.disconnect({ sub: "me" }, stage.app)
      await me.client.lost.take("the loss of the connection")
      assert.equal((await rejoined(me.replies)).status, "ok")
      me.push("presence_metadata", { custom: "back" })

      await shows(me, { me: ["back"], guest: [undefined] })
    },
  }),
]

/** Waits until the client's state is exactly this: for each key the `custom` of its metas, in any order. */
async function shows(channel, expected) {
  for (let picture; ; ) {
    picture = customs(await channel.pictures.take(`the picture ${JSON.stringify(expected)}`).catch(error => {
      throw new Error(`${error.message}; the last was ${JSON.stringify(picture)}`)
    }))
    if (JSON.stringify(picture) === JSON.stringify(sorted(expected))) return
  }
}

function customs(picture) {
  const metas = Object.entries(picture).map(([key, { metas }]) => [key, metas.map(({ custom }) => custom)])
  return sorted(Object.fromEntries(metas))
}

/** The same state in a fixed order, because `shows` compares texts. In these texts, undefined is null. */
function sorted(picture) {
  const byText = (one, other) => JSON.stringify([one]).localeCompare(JSON.stringify([other]))
  return Object.fromEntries(Object.keys(picture).sort().map(key => [key, [...picture[key]].sort(byText)]))
}
