// What a click anywhere on the page can do. main.js, which imports all that draws, puts its functions here for them to call.

/** @import { Point, View } from "./types.js" */

/**
 * @type {{ update: () => void, choose: (point: Point) => void, ask: (question: string) => void, view: () => View }}
 */
export const actions = {
  update: undefined, // draw the page again, after a choice
  choose: undefined, // open a point
  ask: undefined, // answer a question
  view: undefined, // the page as it is drawn now
};
