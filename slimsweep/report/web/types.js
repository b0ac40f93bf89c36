// The data that Python sends with the page (slimsweep/report/page_data.py), and what the modules make of it. Nothing here runs.

/**
 * A number that points have: what it is called and how it is shown (slimsweep/ledger/columns.py).
 * @typedef {object} Column
 * @property {string} name
 * @property {string} title
 * @property {string} unit %, nats, MACs, parameters, B, s, ms or images/s
 * @property {number | null} decimals that are shown; null: three significant digits
 * @property {"x" | "y" | null} axis
 * @property {boolean} more whether more is better
 */

/**
 * What the models of a run are judged by (slimsweep/ledger/measures.py); more is better.
 * @typedef {object} Measure
 * @property {string} name
 * @property {string} title without the split: top-1, R2
 * @property {string} word what there is more of in a better model: accuracy, R2
 * @property {string} highest what the model with the most of it is called
 * @property {string} val name of the column by which choices are made
 * @property {string} test name of the column that is reported
 * @property {string} cut name of the column of `val` right after the cut, before retraining
 * @property {string} unit
 * @property {number} decimals
 * @property {number} point what "1 point" of it is
 * @property {string} points the unit of a difference
 * @property {number | null} untouched what the untouched dense model has by definition; null where it is measured
 */

/**
 * How far a column is from its best value, as an axis.
 * @typedef {Column & { of: string, best: number }} ErrorColumn
 */

/**
 * A column, an error or a timing in one setting, that can be an axis.
 * @typedef {Column & { key: string, label: string, setting?: string, error?: ErrorColumn,
 *   of: (point: Point) => number | null }} Metric
 */

/**
 * One retrained model.
 * @typedef {object} Point
 * @property {number} i its place among all points
 * @property {number} run the run's place in `page.runs`
 * @property {string} point its name
 * @property {string} method
 * @property {number | null} seed
 * @property {number | null} budget a fraction of the dense model's cost
 * @property {string} unit the cost that the budget counts: macs, params, ms
 * @property {number | null} [budget_ms] milliseconds, where that many were asked for
 * @property {string} [timed_in] the setting that a budget in ms was met in, where there are several
 * @property {string | null} shares JSON: the share of its gates that each family keeps, where that was asked for
 * @property {"ok" | "failed" | "stopped"} status
 * @property {string | null} error
 * @property {number} macs
 * @property {number} macs_dense
 * @property {number} params
 * @property {number} params_dense
 * @property {number | null} model_bytes
 * @property {number | null} test_top5
 * @property {number | null} test_loss
 * @property {number | null} lr
 * @property {string | null} teacher who taught the retraining, and how; empty where nobody did
 * @property {number | null} epochs
 * @property {number | null} train_seconds
 * @property {string | null} device
 * @property {string | null} model_path
 * @property {Structure | null} layers
 * @property {{ epoch: number[], val: number[], loss: (number | null)[] } | null} curve
 * @property {Record<number, (number | null)[]>} bench by setting: a number per column of `page.timings`
 * @property {Int8} [int8] its INT8 version, where it has one
 */

/**
 * The INT8 version of a model (slimsweep/report/quantized.py).
 * @typedef {object} Int8
 * @property {string} file
 * @property {string} setting of its times; empty where they are not known
 * @property {Record<string, number | null>} numbers by the names of the columns of `page.int8`
 */

/**
 * Points that differ by their seed only.
 * @typedef {object} Group
 * @property {number} run
 * @property {string} method
 * @property {string} unit
 * @property {number | null} budget
 * @property {string} shares
 * @property {number | null} [budget_ms] milliseconds, where that many were asked for
 * @property {string} [timed_in] the setting that a budget in ms was met in, where there are several
 * @property {Point[]} members
 * @property {Point} best by validation
 * @property {Record<string, number | null>} mean over seeds, by a metric's key
 * @property {Record<string, number | null>} se standard error of the mean over seeds; for one seed that of the number of images,
 *   null where neither is known
 */

/**
 * A group at its place in the figure.
 * @typedef {Group & { x: number, y: number, yse: number | null }} Placed
 */

/**
 * What a structure keeps in each layer.
 * @typedef {object} Structure
 * @property {number} shape its place in `page.shapes`
 * @property {number[][]} heads kept dims of each head
 * @property {number[]} units
 * @property {number[]} tokens
 * @property {number[] | null} last how many layers keep each patch token; null where there are no token gates
 */

/**
 * The dense sizes of a model's layers.
 * @typedef {object} Shape
 * @property {string[]} names
 * @property {number[]} heads
 * @property {number[]} head_dim
 * @property {number[]} hidden
 * @property {number[]} tokens
 * @property {[number, number]} grid rows and columns of patches
 */

/**
 * How far a run is.
 * @typedef {object} Progress
 * @property {number} planned
 * @property {number} done
 * @property {number} failed
 * @property {number} stopped before their last epoch, as another learning rate was ahead
 * @property {number} running
 * @property {boolean} finished
 * @property {string} next what comes next, in one sentence
 * @property {Record<string, number>} bar lengths of the progress bar's pieces
 * @property {{ name: string, state: string, epochs: number, epochs_total: number, val: number | null }[]} under_way
 */

/**
 * Per layer (a list over epochs each), and the mean over layers.
 * @typedef {{ layers: (number | null)[][], mean: (number | null)[] }} OverEpochs
 */

/**
 * @typedef {object} Run
 * @property {string} name
 * @property {string | null} uri
 * @property {string} model
 * @property {string} data
 * @property {number} dataset its place in `page.datasets`
 * @property {number} points
 * @property {string} measure the name of what its models are judged by
 * @property {number | null} untouched the measure on test of the dense model that the search started from
 * @property {number | null} untouched_val the same on validation
 * @property {{ val?: number, test?: number }} images of the splits, where known
 * @property {string[]} cautions what a reader has to know before believing the numbers, a sentence each
 * @property {Progress | null} progress
 * @property {{ epoch: number[], val: number[], gate_epoch: number[],
 *   families: Record<string, { mean: OverEpochs, below: OverEpochs }> } | null} search
 * @property {Record<string, { edges: number[], counts: number[] }>} gates
 * @property {{ chosen: Record<string, number>, budget: number, unit: string, val: number[] } | null} pace
 * @property {any} [about] how it was made (slimsweep/report/about.py)
 * @property {any} [leaving] which gates leave at which budget (slimsweep/report/about.py)
 * @property {{ method: string, budgets: number, seeds: number, mean: number, se: number | null }[]} hypervolume
 */

/**
 * @typedef {{ light: string, dark: string }} Shades
 * @typedef {Shades & { symbol: string, hollow: boolean }} Look
 */

/**
 * All that Python sends, columns made into points and groups.
 * @typedef {object} Page
 * @property {Column[]} columns
 * @property {Record<string, Measure>} measures by name, those that a run has
 * @property {ErrorColumn[]} errors
 * @property {Column[]} timings
 * @property {string[]} settings
 * @property {Run[]} runs
 * @property {{ field: string, values: (string | null)[] }[]} differing fields of the configuration in which the runs differ
 * @property {{ name: string, runs: number[], reference_macs: number | null }[]} datasets
 * @property {string[]} methods
 * @property {Record<string, Look>} looks of each method
 * @property {string[]} untrained the methods of points that were cut and repaired, and not trained
 * @property {Shades[]} run_colours
 * @property {number} alike costs that differ by no more than this share of the dense model's count as equal
 * @property {number} handful images: a choice that hangs on no more of them is called so
 * @property {Point[]} points
 * @property {{ columns: Column[] }} int8
 * @property {Group[]} groups
 * @property {Shape[]} shapes
 * @property {Structure[]} structures
 * @property {Record<string, number | null>} bench_dense "run|setting" to the dense model's latency
 * @property {[number, number, number, string][]} [limits] budgets in milliseconds: the places of the run and of the setting, the
 *   milliseconds, and the budget in words
 * @property {number | null} refresh_seconds
 */

/**
 * What changes are measured against in one run: the retrained dense model, or the untouched one before that is done.
 * @typedef {{ test: number | null, val: number | null, what: string, group: Group | null }} Dense
 */

/**
 * The page under the reader's choices.
 * @typedef {object} View
 * @property {Page} page
 * @property {{ x: Metric[], y: Metric[] }} metrics
 * @property {Metric} x
 * @property {Metric} y
 * @property {Point[]} shown
 * @property {Placed[]} groups
 * @property {Placed[]} front
 * @property {Placed[][]} fronts one per data set
 * @property {number} tolerance costs that differ by no more count as equal on the front
 * @property {Set<Point>} fronted members of the front's groups
 * @property {Placed | null} knee
 * @property {number[]} runs
 * @property {Dense[]} dense of each run
 * @property {boolean} logx
 * @property {boolean} logy
 * @property {number} unplaced groups that a logarithmic axis of an error cannot show, for they have none
 * @property {boolean} mixed several data sets share the figure
 * @property {Set<Placed>} [outside] groups far below the front
 * @property {boolean} [cropped] whether the y axis leaves them out
 * @property {Answer | null} [answer]
 * @property {Point | null} [selected]
 * @property {Point[]} [rows] of the table
 * @property {object[]} [shapes] of the figure, without the ring
 * @property {[Scale, Scale]} [scales] of both axes
 */

/**
 * @typedef {{ size: number, unit: string }} Scale
 */

/**
 * One condition of a question: a kind, an upper (most) or lower limit, the words it was read from, and how they were taken
 * where that does not go without saying. Of a timing also the key of its metric, and the setting.
 * @typedef {{ kind: string, most: boolean, value: number, text: string, setting?: string, metric?: string,
 *   note?: string, bare?: boolean }} Condition
 */

/**
 * @typedef {object} Answer
 * @property {string} [problem] one sentence on what could not be read or answered
 * @property {string[]} [choices] questions that say the same without a doubt, where it was asked back
 * @property {Condition[]} [conditions]
 * @property {Set<Point>} [fits]
 * @property {Group[]} [groups] those that fit
 * @property {Group | null} [group] the one that answers
 * @property {Point | null} [answer] its best seed by validation
 * @property {boolean} [limited] whether a limit on cost was given
 * @property {{ condition: Condition, point: Point, value: number } | null} [nearest]
 */

export {};
