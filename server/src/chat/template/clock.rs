//! The calendar time a template sees, and Python's `strftime` over it (C locale, no time zone: a naive datetime).

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAY_S: i64 = 86_400;

/// A point in time as a calendar and a wall clock show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CivilTime {
    /// Gregorian year.
    pub year: i64,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// 0 to 23.
    pub hour: u32,
    /// 0 to 59.
    pub minute: u32,
    /// 0 to 59.
    pub second: u32,
}

impl CivilTime {
    /// The system clock, in UTC.
    pub fn now_utc() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_unix_s(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX))
    }

    /// From seconds since 1970-01-01 UTC (days to civil date as in Howard Hinnant's `civil_from_days`).
    pub fn from_unix_s(unix_s: i64) -> Self {
        let days = unix_s.div_euclid(DAY_S) + 719_468;
        let second_of_day = unix_s.rem_euclid(DAY_S) as u32;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u32;
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32,
            hour: second_of_day / 3_600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    /// Python's `datetime.strftime(format)`. An unknown directive is copied as it stands.
    pub fn strftime(&self, format: &str) -> String {
        let mut out = String::with_capacity(format.len() + 16);
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let (unpadded, directive) = match rest.next() {
                Some('-') => (true, rest.next()),
                other => (false, other),
            };
            match directive {
                Some(directive) => self.directive(directive, unpadded, &mut out),
                None => out.push('%'),
            }
        }
        out
    }

    fn directive(&self, directive: char, unpadded: bool, out: &mut String) {
        let month = MONTHS[(self.month as usize).clamp(1, 12) - 1];
        let weekday = WEEKDAYS[self.weekday() as usize % 7];
        let hour_12 = (self.hour + 11) % 12 + 1;
        let number = |width: usize, value: i64| match unpadded {
            true => value.to_string(),
            false => format!("{value:0width$}"),
        };
        let text = match directive {
            'Y' => self.year.to_string(),
            'y' => number(2, self.year.rem_euclid(100)),
            'C' => number(2, self.year.div_euclid(100)),
            'm' => number(2, i64::from(self.month)),
            'd' => number(2, i64::from(self.day)),
            'e' if unpadded => self.day.to_string(),
            'e' => format!("{:2}", self.day),
            'H' => number(2, i64::from(self.hour)),
            'I' => number(2, i64::from(hour_12)),
            'M' => number(2, i64::from(self.minute)),
            'S' => number(2, i64::from(self.second)),
            'j' => number(3, self.day_of_year()),
            'f' => "000000".into(),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.into(),
            'B' => month.into(),
            'b' | 'h' => month[..3].into(),
            'A' => weekday.into(),
            'a' => weekday[..3].into(),
            'w' => self.weekday().to_string(),
            'u' => ((self.weekday() + 6) % 7 + 1).to_string(),
            'U' => number(2, (self.day_of_year() + 6 - self.weekday()) / 7),
            'W' => number(2, (self.day_of_year() + 6 - (self.weekday() + 6) % 7) / 7),
            'F' => self.strftime("%Y-%m-%d"),
            'D' | 'x' => self.strftime("%m/%d/%y"),
            'T' | 'X' => self.strftime("%H:%M:%S"),
            'R' => self.strftime("%H:%M"),
            'c' => self.strftime("%a %b %e %H:%M:%S %Y"),
            'n' => "\n".into(),
            't' => "\t".into(),
            'Z' | 'z' => String::new(),
            '%' => "%".into(),
            other => {
                let _ = write!(out, "%{}{other}", if unpadded { "-" } else { "" });
                return;
            }
        };
        out.push_str(&text);
    }

    /// Days since 1970-01-01 (Howard Hinnant's `days_from_civil`).
    fn days_since_epoch(&self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let shifted_month = i64::from((self.month + 9) % 12);
        let day_of_year = (153 * shifted_month + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
    }

    /// 0 is Sunday.
    fn weekday(&self) -> i64 {
        (self.days_since_epoch() + 4).rem_euclid(7)
    }

    /// 1 to 366.
    fn day_of_year(&self) -> i64 {
        self.days_since_epoch() - CivilTime { month: 1, day: 1, ..*self }.days_since_epoch() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strftime_agrees_with_python() {
        // python3 -c "import datetime as d; print(d.datetime.utcfromtimestamp(N).strftime(F))"
        let format = "%Y-%m-%d %H:%M:%S %y %C %-d %-m %e %I%p %j %B %b %A %a %w %u %U %W %c %x %X %F %T %%";
        let cases = [
            (
                0,
                "1970-01-01 00:00:00 70 19 1 1  1 12AM 001 January Jan Thursday Thu 4 4 00 00 Thu Jan  1 00:00:00 1970 01/01/70 00:00:00 1970-01-01 00:00:00 %",
            ),
            (
                1_709_210_096,
                "2024-02-29 12:34:56 24 20 29 2 29 12PM 060 February Feb Thursday Thu 4 4 08 09 Thu Feb 29 12:34:56 2024 02/29/24 12:34:56 2024-02-29 12:34:56 %",
            ),
            (
                1_798_761_599,
                "2026-12-31 23:59:59 26 20 31 12 31 11PM 365 December Dec Thursday Thu 4 4 52 52 Thu Dec 31 23:59:59 2026 12/31/26 23:59:59 2026-12-31 23:59:59 %",
            ),
            (
                -1,
                "1969-12-31 23:59:59 69 19 31 12 31 11PM 365 December Dec Wednesday Wed 3 3 52 52 Wed Dec 31 23:59:59 1969 12/31/69 23:59:59 1969-12-31 23:59:59 %",
            ),
        ];
        for (unix_s, expected) in cases {
            assert_eq!(CivilTime::from_unix_s(unix_s).strftime(format), expected, "{unix_s}");
        }
        assert_eq!(CivilTime::from_unix_s(0).strftime("a %Q %"), "a %Q %");
    }
}
