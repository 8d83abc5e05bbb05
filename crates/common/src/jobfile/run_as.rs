//! As whom a task runs.

use std::sync::LazyLock;

use muster_core::run_as::{RunAs, Scratch};

use super::{
    kind::{Kind, Shape},
    read::{Element, Field, Read, Reader, Table, field},
    tree::{Node, Value},
};

impl Table for RunAs {
    const NAME: &'static str = "run_as";

    fn fields() -> &'static [Field<Self>] {
        static FIELDS: LazyLock<Vec<Field<RunAs>>> = LazyLock::new(|| {
            vec![
                field(
                    "user",
                    |r: &mut RunAs, v: Account| r.user = Some(v.0),
                    "A user of the agent's machine, by name or number.",
                ),
                field(
                    "group",
                    |r: &mut RunAs, v: Account| r.group = Some(v.0),
                    "Its group, by name or number. The first one of `user`, if it is not given.",
                ),
                field(
                    "groups",
                    |r: &mut RunAs, v: Vec<Account>| r.groups = Some(v.into_iter().map(|one| one.0).collect()),
                    "Its other groups. Those that `user` is in, if it is not given; `[]` for none.",
                ),
                field(
                    "umask",
                    |r: &mut RunAs, v: Umask| r.umask = Some(v.0),
                    "Permissions that files are made without, in octal.",
                ),
                field(
                    "nice",
                    |r: &mut RunAs, v: Nice| r.nice = Some(v.0),
                    "Its place in line for processors, from -20 (first) to 19 (last).",
                ),
                field(
                    "no_new_privs",
                    |r: &mut RunAs, v: bool| r.no_new_privs = v,
                    "Whether no program that it starts gets rights which it does not have itself (`sudo`, setuid).",
                )
                .or("false"),
            ]
        });
        &FIELDS
    }
}

impl Read for RunAs {
    fn kind() -> Kind {
        Kind::OneOf(vec![Kind::Text, Kind::Table(Self::shape())])
    }

    fn wants() -> String {
        "a user's name, or a table ([below](#run_as))".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(user) => Some(Self { user: Some(user.clone()), ..Self::default() }),
            Value::Table(_) => {
                let mut run_as = Self::default();
                run_as.fill(reader, node).then_some(run_as)
            }
            _ => reader.mistyped(node, "a user's name, or a table"),
        }
    }
}

/// A user or a group.
struct Account(String);

impl Read for Account {
    fn kind() -> Kind {
        Kind::OneOf(vec![Kind::Text, Kind::Integer(0, i64::from(u32::MAX - 1))])
    }

    fn wants() -> String {
        "a name or a number".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(name) => Some(Self(name.clone())),
            Value::Int(number) if (0..i64::from(u32::MAX)).contains(number) => Some(Self(number.to_string())),
            _ => reader.mistyped(node, &Self::wants()),
        }
    }
}

impl Element for Account {
    fn blank() -> Self {
        Self(String::new())
    }
}

struct Umask(u32);

impl Read for Umask {
    fn kind() -> Kind {
        Kind::Pattern("^0?[0-7]{3}$")
    }

    fn wants() -> String {
        "three octal digits as text: `\"027\"`".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let Value::Text(text) = &node.value else { return reader.mistyped(node, &Self::wants()) };
        let digits = if text.len() == 4 { text.strip_prefix('0') } else { Some(text.as_str()) };
        let digits = digits.filter(|digits| digits.len() == 3 && digits.bytes().all(|b| matches!(b, b'0'..=b'7')));
        let umask = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok()).map(Self);
        reader.judge(node, umask.ok_or_else(|| format!("{text:?} is not {}", Self::wants())))
    }
}

struct Nice(i32);

impl Read for Nice {
    fn kind() -> Kind {
        Kind::Integer(-20, 19)
    }

    fn wants() -> String {
        "a whole number from -20 to 19".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let Value::Int(value) = &node.value else { return reader.mistyped(node, &Self::wants()) };
        let nice = i32::try_from(*value).ok().filter(|nice| (-20..=19).contains(nice));
        reader.judge(node, nice.map(Self).ok_or_else(|| format!("{value} is not {}", Self::wants())))
    }
}

/// The shape of the long form of `run_as`.
pub(super) fn shape() -> Shape {
    RunAs::shape()
}

/// The words for [`Scratch`].
pub(super) const SCRATCH: [(&str, Scratch); 3] =
    [("none", Scratch::None), ("private", Scratch::Private), ("keep_on_failure", Scratch::KeepOnFailure)];
