/* Exchanges that a memory knows: it asked whether something was meant, and a person says yes or no; and questions that
   ask for a day's notes. The twins of sideplug/memory/settings.py and days.py. */

import { words } from "./words.js";

const [MEANT, NEAR] = ["Did you mean: ", "I am not sure, but you noted: "];
const setOf = (listed) => new Set(listed.split(",").map((each) => words(each).join(" ")));
const YES = setOf("yes,y,yeah,yep,yes please,yes i did,i did,yes i do,i do,correct,exactly,right,sure,ok,that one,yes that one");
const NO = setOf(
  "no,n,nope,nah,no thanks,no thank you,no i didn't,no i did not,i didn't,i did not,no i don't,no i do not,i don't," +
    "i do not,wrong,that's wrong,not that,not that one,no not that,no not that one,not really,neither,none of that",
);
const plain = (answer) => (answer.includes("?") ? "" : words(answer).join(" "));

/** What asks whether a passage is meant, for each of its parts. */
export const doubtsOf = ({ asked, parts }) => parts.map((part) => (asked ? `${MEANT}${asked.split(/\s+/).join(" ")}` : `${NEAR}${part}`));

/** The question that a person says yes to; "" for another answer. */
export const agreed = (said, answer) => (said.startsWith(MEANT) && YES.has(plain(answer)) ? said.slice(MEANT.length) : "");

/** The words of a note that a person says yes to; "" for another answer. */
export const noted = (said, answer) => (said.startsWith(NEAR) && YES.has(plain(answer)) ? said.slice(NEAR.length) : "");

/** Whether a person says no to what was asked. */
export const declined = (said, answer) => (said.startsWith(MEANT) || said.startsWith(NEAR)) && NO.has(plain(answer));

export const MONTHS = "January February March April May June July August September October November December".split(" ");
const MONTH = MONTHS.map((name) => (name === "May" ? name : `${name.slice(0, 3)}(?:${name.slice(3)})?`)).join("|");
const DAY = new RegExp(
  "\\b(?<iso>\\d{4}-\\d{2}-\\d{2})\\b" +
    `|\\b(?<day>\\d{1,2})(?:st|nd|rd|th)?(?: of)? (?<month>${MONTH})\\b\\.?(?:,? (?<year>\\d{4})\\b)?` +
    `|\\b(?<month2>${MONTH})\\b\\.? (?<day2>\\d{1,2})(?:st|nd|rd|th)?\\b(?:,? (?<year2>\\d{4})\\b)?`,
  "i",
);
const REST = new Set(
  ("what was were is did do i my me on the happen happened for about note notes noted write wrote diary entry have " +
    "had there anything tell show of from that day we in").split(" "),
);

/** The end of the date (YYYY-MM-DD, or -MM-DD without a year) whose notes a question asks for; else "". */
export function dayAskedFor(question) {
  const found = DAY.exec(question);
  if (!found) return "";
  const rest = `${question.slice(0, found.index)} ${question.slice(found.index + found[0].length)}`;
  if (!words(rest).every((word) => REST.has(word))) return "";
  const named = found.groups;
  if (named.iso) return named.iso;
  const [month, day, year] = [named.month ?? named.month2, named.day ?? named.day2, named.year ?? named.year2];
  const number = MONTHS.findIndex((name) => name.toLowerCase().startsWith(month.slice(0, 3).toLowerCase())) + 1;
  return `${year ?? ""}-${String(number).padStart(2, "0")}-${day.padStart(2, "0")}`;
}
