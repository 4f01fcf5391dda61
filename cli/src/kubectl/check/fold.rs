//! One trouble is told once. Everything that is noticed about a deployment is a sign; some signs are causes, and others
//! only follow from one. Pure.

use disagg_api::kubernetes::Component;

use super::Finding;

/// Something that was noticed about a deployment.
pub(super) struct Sign {
    pub(super) finding: Finding,
    pub(super) about: About,
    /// Whose trouble it may follow from. `None`: it is a cause of its own.
    pub(super) follows: Option<Follows>,
    /// The finding in a few words, for the line that tells what follows from a cause.
    pub(super) short: String,
}

/// What a sign is about, and so which others it can explain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum About {
    /// The whole deployment: everything may follow from it.
    Whole,
    /// What the routers are set to.
    Settings,
    /// The pods of one part.
    Part(Component),
    /// One pod of a part, by its name.
    Pod(Component, String),
    /// Nothing that others depend on.
    Aside,
}

/// What explains a sign, if it is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Follows {
    /// What is wrong with this pod.
    Pod(String),
    /// What is wrong with this part.
    Part(Component),
    /// What is wrong with workers of either role.
    Workers,
    /// What is wrong with the settings.
    Settings,
    /// Whatever else is wrong.
    Any,
}

impl Sign {
    /// A cause of its own.
    pub(super) fn cause(finding: Finding, about: About) -> Self {
        let short = format!("{}: {}", finding.subject, finding.what);
        Self { finding, about, follows: None, short }
    }

    /// A sign that may follow from another.
    pub(super) fn following(
        finding: Finding,
        about: About,
        follows: Follows,
        short: impl Into<String>,
    ) -> Self {
        Self { finding, about, follows: Some(follows), short: short.into() }
    }
}

impl About {
    /// The order of causes: that without which others cannot be judged comes first.
    fn rank(&self) -> u8 {
        match self {
            Self::Whole => 0,
            Self::Part(Component::Decode) | Self::Pod(Component::Decode, _) => 1,
            Self::Part(Component::Prefill) | Self::Pod(Component::Prefill, _) => 2,
            Self::Part(Component::Router) | Self::Pod(Component::Router, _) => 3,
            Self::Settings => 4,
            Self::Aside => 5,
        }
    }

    /// How much a sign is about: one pod, or more.
    fn width(&self) -> u8 {
        u8::from(!matches!(self, Self::Pod(..)))
    }

    fn part(&self) -> Option<Component> {
        match self {
            Self::Part(part) | Self::Pod(part, _) => Some(*part),
            Self::Whole | Self::Settings | Self::Aside => None,
        }
    }

    fn explains(&self, follows: &Follows) -> bool {
        match follows {
            Follows::Pod(name) => matches!(self, Self::Pod(_, pod) if pod == name),
            Follows::Part(part) => self.part() == Some(*part),
            Follows::Workers => self.part().is_some_and(|part| part != Component::Router),
            Follows::Settings => *self == Self::Settings,
            Follows::Any => *self != Self::Aside,
        }
    }
}

impl Follows {
    /// The order in which signs find their causes: the narrow first, since they may turn out to be causes of the wide.
    fn width(&self) -> u8 {
        match self {
            Self::Pod(_) => 1,
            Self::Part(_) | Self::Workers | Self::Settings => 2,
            Self::Any => 3,
        }
    }

    /// Where the cause is if it is not where it should be: no router is ready before a decode worker is.
    fn else_from(&self) -> Option<Self> {
        (*self == Self::Part(Component::Router)).then_some(Self::Part(Component::Decode))
    }
}

/// A finding, and what the signs that it explains were about: others may follow from those.
struct Cause {
    finding: Finding,
    about: Vec<About>,
}

/// The causes, first things first, each with what follows from it.
pub(super) fn fold(mut signs: Vec<Sign>) -> Vec<Finding> {
    // What is about one pod comes before what is said of its whole part, which may follow from it.
    signs.sort_by_key(|sign| {
        let width = sign.follows.as_ref().map_or(0, Follows::width);
        (width, sign.about.width(), sign.finding.severity, sign.about.rank())
    });
    let mut causes: Vec<Cause> = Vec::new();
    for sign in signs {
        let Sign { finding, about, follows, short } = sign;
        if let Some(cause) = follows.as_ref().and_then(|follows| cause_of(&mut causes, follows)) {
            // What follows may be worse than its cause looked.
            cause.finding.severity = cause.finding.severity.min(finding.severity);
            if !cause.finding.hence.contains(&short) {
                cause.finding.hence.push(short);
            }
            cause.about.push(about);
        } else if let Some(same) = causes.iter_mut().find(|it| is_same(it, &finding, &about)) {
            same.finding.more.push(finding.subject);
            same.about.push(about);
        } else {
            causes.push(Cause { finding, about: vec![about] });
        }
    }
    causes.sort_by_key(|cause| (cause.finding.severity, cause.about[0].rank()));
    causes.into_iter().map(|cause| cause.finding).collect()
}

/// The cause of what follows so: the nearest that there is.
fn cause_of<'a>(causes: &'a mut [Cause], follows: &Follows) -> Option<&'a mut Cause> {
    let find =
        |explains: &dyn Fn(&About) -> bool| causes.iter().position(|cause| cause.about.iter().any(explains));
    let at = find(&|about| about.explains(follows))
        .or_else(|| find(&|about| *about == About::Whole))
        .or_else(|| follows.else_from().and_then(|other| find(&|about| about.explains(&other))))?;
    causes.get_mut(at)
}

/// Pods of one part with the same trouble are one finding.
fn is_same(cause: &Cause, finding: &Finding, about: &About) -> bool {
    cause.finding.what == finding.what
        && cause.finding.severity == finding.severity
        && cause.about[0].part() == about.part()
        && cause.finding.subject != finding.subject
}
