// What a click anywhere on the page can do. main.js, which imports all that draws, puts its functions here for them to call.

export const actions = {
  update: () => {}, // draw the page again, after a choice
  choose: (_point) => {}, // open a point
  ask: (_question) => {}, // answer a question
  view: () => null, // the page as it is drawn now
};
