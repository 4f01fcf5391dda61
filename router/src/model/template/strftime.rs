//! `strftime_now`: a date and time as C's `strftime` writes it in its own locale, which is what Python calls.

use jiff::civil::DateTime;
use minijinja::Error;

use super::limits::{Limit, Rendering, WIDTH_MAX};

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The format of the rendering's clock.
pub(super) fn strftime(rendering: &Rendering, format: &str) -> Result<String, Error> {
    rendering.work(format.len())?;
    let mut out = String::with_capacity(format.len() * 2);
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let place = &rest[at..];
        rest = &place[1..];
        // glibc's flags, a width, and modifiers that its own locale ignores.
        let flags = rest.len() - rest.trim_start_matches(['_', '-', '0', '^', '#']).len();
        let (flags, behind) = rest.split_at(flags);
        let digits = behind.len() - behind.trim_start_matches(|char: char| char.is_ascii_digit()).len();
        let (width, behind) = behind.split_at(digits);
        let behind = behind.strip_prefix(['E', 'O']).unwrap_or(behind);
        let Some(conversion) = behind.chars().next() else {
            out.push_str(place);
            return Ok(out);
        };
        rest = &behind[conversion.len_utf8()..];
        let width = if width.is_empty() { 0 } else { width.parse().unwrap_or(usize::MAX) };
        if width > WIDTH_MAX {
            return Err(rendering.reached(Limit::Width));
        }
        match field(&rendering.now, conversion) {
            Some(field) => {
                let text = field.write(flags, width);
                rendering.work(text.len())?;
                out.push_str(&text);
            }
            // What is no conversion stays as it is.
            None => out.push_str(&place[..place.len() - rest.len()]),
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// What a conversion shows.
enum Field {
    /// A number, with its width and what it is filled with.
    Number(i64, usize, char),
    Text(String),
}

impl Field {
    fn write(self, flags: &str, width: usize) -> String {
        let pad = flags.chars().rfind(|flag| matches!(flag, '_' | '-' | '0'));
        match self {
            Self::Number(number, default_width, fill) => {
                let fill = match pad {
                    Some('_') => ' ',
                    Some('0') => '0',
                    _ => fill,
                };
                let width = match pad {
                    Some('-') => width,
                    _ if width == 0 => default_width,
                    _ => width,
                };
                let digits = number.to_string();
                fill.to_string().repeat(width.saturating_sub(digits.len())) + &digits
            }
            Self::Text(text) => {
                let text = match flags {
                    _ if flags.contains('^') => text.to_uppercase(),
                    // AM and PM are the only texts in capitals, and become small.
                    _ if flags.contains('#') && text.chars().all(char::is_uppercase) => text.to_lowercase(),
                    _ if flags.contains('#') => text.to_uppercase(),
                    _ => text,
                };
                let fill = if pad == Some('0') { "0" } else { " " };
                fill.repeat(width.saturating_sub(text.chars().count())) + &text
            }
        }
    }
}

fn field(now: &DateTime, conversion: char) -> Option<Field> {
    let (year, month, day) = (i64::from(now.year()), i64::from(now.month()), i64::from(now.day()));
    let (hour, minute, second) = (i64::from(now.hour()), i64::from(now.minute()), i64::from(now.second()));
    let week_day = i64::from(now.weekday().to_sunday_zero_offset());
    let year_day = i64::from(now.day_of_year());
    let iso = now.date().iso_week_date();
    let hour_12 = (hour + 11) % 12 + 1;
    let month_name = MONTHS[usize::try_from(month - 1).ok()?];
    let day_name = DAYS[usize::try_from(week_day).ok()?];
    let half = if hour < 12 { "AM" } else { "PM" };
    let two = |number: i64| Field::Number(number, 2, '0');
    let text = |text: &str| Field::Text(text.to_owned());
    Some(match conversion {
        'a' => text(&day_name[..3]),
        'A' => text(day_name),
        'b' | 'h' => text(&month_name[..3]),
        'B' => text(month_name),
        'c' => Field::Text(format!(
            "{} {} {day:>2} {hour:02}:{minute:02}:{second:02} {year}",
            &day_name[..3],
            &month_name[..3]
        )),
        'C' => two(year / 100),
        'd' => two(day),
        'D' | 'x' => Field::Text(format!("{month:02}/{day:02}/{:02}", year % 100)),
        'e' => Field::Number(day, 2, ' '),
        // Python's own: microseconds.
        'f' => Field::Text(format!("{:06}", now.subsec_nanosecond() / 1000)),
        'F' => Field::Text(format!("{year}-{month:02}-{day:02}")),
        'g' => two(i64::from(iso.year()) % 100),
        'G' => Field::Number(iso.year().into(), 0, '0'),
        'H' => two(hour),
        'I' => two(hour_12),
        'j' => Field::Number(year_day, 3, '0'),
        'k' => Field::Number(hour, 2, ' '),
        'l' => Field::Number(hour_12, 2, ' '),
        'm' => two(month),
        'M' => two(minute),
        'n' => text("\n"),
        'p' => text(half),
        'P' => Field::Text(half.to_lowercase()),
        'r' => Field::Text(format!("{hour_12:02}:{minute:02}:{second:02} {half}")),
        'R' => Field::Text(format!("{hour:02}:{minute:02}")),
        's' => {
            let utc = now.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
            Field::Number(utc.timestamp().as_second(), 0, '0')
        }
        'S' => two(second),
        't' => text("\t"),
        'T' | 'X' => Field::Text(format!("{hour:02}:{minute:02}:{second:02}")),
        'u' => Field::Number((week_day + 6) % 7 + 1, 1, '0'),
        'U' => two((year_day + 6 - week_day) / 7),
        'V' => two(iso.week().into()),
        'w' => Field::Number(week_day, 1, '0'),
        'W' => two((year_day + 6 - (week_day + 6) % 7) / 7),
        'y' => two(year % 100),
        'Y' => Field::Number(year, 0, '0'),
        // A time without a zone.
        'z' | 'Z' => text(""),
        '%' => text("%"),
        _ => return None,
    })
}
