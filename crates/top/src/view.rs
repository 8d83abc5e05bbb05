//! What a person chose to see: order, filter, place, pause. Keys change it, and nothing else does.

use crate::picture::{Agent, Picture};

/// A key, whatever terminal it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// One line up.
    Up,
    /// One line down.
    Down,
    /// One page up.
    PageUp,
    /// One page down.
    PageDown,
    /// To the first line.
    Home,
    /// To the last line.
    End,
    /// Done with what is being typed.
    Enter,
    /// Not that, then.
    Escape,
    /// Takes the last character back.
    Backspace,
}

/// What agents are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// Busiest first.
    #[default]
    Cpus,
    /// Most taken first.
    Memory,
    /// Most tasks first.
    Running,
    /// Highest load first.
    Load,
    /// By name.
    Name,
    /// By state.
    State,
}

impl Sort {
    const ALL: [Self; 6] = [Self::Cpus, Self::Memory, Self::Running, Self::Load, Self::Name, Self::State];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpus => "cpus",
            Self::Memory => "memory",
            Self::Running => "running",
            Self::Load => "load",
            Self::Name => "name",
            Self::State => "state",
        }
    }

    fn next(self) -> Self {
        let place = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(place + 1) % Self::ALL.len()]
    }

    /// The name decides between equals, so that lines do not jump.
    fn sort(self, agents: &mut [&Agent]) {
        let most = |a: f64, b: f64| b.total_cmp(&a);
        agents.sort_by(|a, b| {
            let order = match self {
                Self::Cpus => most(a.cpus.part(), b.cpus.part()),
                Self::Memory => most(a.memory.part(), b.memory.part()),
                Self::Running => b.running.cmp(&a.running),
                Self::Load => most(a.load.unwrap_or(-1.0), b.load.unwrap_or(-1.0)),
                Self::Name => std::cmp::Ordering::Equal,
                Self::State => a.state.cmp(&b.state),
            };
            order.then_with(|| a.name.cmp(&b.name))
        });
    }
}

/// What a person chose to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The order of agents.
    pub sort: Sort,
    /// Only lines that hold this.
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    /// Nothing new is looked at.
    pub paused: bool,
    /// The first agent that is shown.
    pub first: usize,
    /// The person wants to leave.
    pub done: bool,
}

impl View {
    /// A key was pressed, while `page` of `count` agents are shown.
    pub fn press(&mut self, key: Key, count: usize, page: usize) {
        if self.typing {
            return self.edit(key);
        }
        let last = count.saturating_sub(page);
        // Agents may have gone since: it is counted from what is seen.
        self.first = self.first.min(last);
        match key {
            Key::Char('q') | Key::Escape if key == Key::Char('q') || self.filter.is_empty() => self.done = true,
            Key::Escape => self.filter.clear(),
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Char('/') => self.typing = true,
            Key::Up => self.first = self.first.saturating_sub(1),
            Key::Down => self.first += 1,
            Key::PageUp => self.first = self.first.saturating_sub(page),
            Key::PageDown => self.first += page,
            Key::Home => self.first = 0,
            Key::End => self.first = last,
            Key::Char(_) | Key::Enter | Key::Backspace => {}
        }
        self.first = self.first.min(last);
    }

    fn edit(&mut self, key: Key) {
        match key {
            Key::Char(c) if !c.is_control() => self.filter.push(c),
            Key::Backspace => _ = self.filter.pop(),
            Key::Escape => {
                self.filter.clear();
                self.typing = false;
            }
            Key::Enter => self.typing = false,
            Key::Char(_) | Key::Up | Key::Down | Key::PageUp | Key::PageDown | Key::Home | Key::End => {}
        }
        self.first = 0;
    }

    /// The agents that are to be seen, in their order.
    pub fn agents<'a>(&self, picture: &'a Picture) -> Vec<&'a Agent> {
        let mut agents: Vec<&Agent> =
            picture.agents.iter().filter(|agent| self.holds(&[&agent.name, &agent.state])).collect();
        self.sort.sort(&mut agents);
        agents
    }

    /// Whether a line of these texts is to be seen.
    pub fn holds(&self, texts: &[&str]) -> bool {
        let filter = self.filter.to_lowercase();
        texts.iter().any(|text| text.to_lowercase().contains(&filter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::Share;

    fn agent(name: &str, used: f64, load: Option<f64>) -> Agent {
        let cpus = Share { used, all: 4.0 };
        Agent { name: name.into(), state: "connected".into(), cpus, load, ..Agent::default() }
    }

    #[test]
    fn keys_do_what_the_last_line_says() {
        let mut view = View::default();
        let press = |view: &mut View, keys: &str| keys.chars().for_each(|c| view.press(Key::Char(c), 100, 10));
        press(&mut view, "ss");
        assert_eq!(view.sort, Sort::Running);
        press(&mut view, "p");
        assert!(view.paused);
        press(&mut view, "/sq");
        assert_eq!(
            (view.filter.as_str(), view.typing, view.done),
            ("sq", true, false),
            "what is typed commands nothing"
        );
        view.press(Key::Backspace, 100, 10);
        view.press(Key::Enter, 100, 10);
        assert_eq!((view.filter.as_str(), view.typing), ("s", false));
        view.press(Key::Escape, 100, 10);
        assert_eq!((view.filter.as_str(), view.done), ("", false), "the first one takes the filter back");
        view.press(Key::Escape, 100, 10);
        assert!(view.done);
        let mut view = View::default();
        press(&mut view, "q");
        assert!(view.done);
    }

    #[test]
    fn nobody_scrolls_past_the_end() {
        let mut view = View::default();
        let table = [
            (Key::Up, 0),
            (Key::Down, 1),
            (Key::PageDown, 11),
            (Key::End, 15),
            (Key::Down, 15),
            (Key::PageUp, 5),
            (Key::Home, 0),
        ];
        for (key, first) in table {
            view.press(key, 25, 10);
            assert_eq!(view.first, first, "{key:?}");
        }
        view.press(Key::End, 3, 10);
        assert_eq!(view.first, 0);
    }

    #[test]
    fn a_step_is_counted_from_what_is_seen_when_agents_went() {
        for (key, first) in [(Key::Up, 14), (Key::PageUp, 5), (Key::Down, 15)] {
            let mut view = View { first: 90, ..View::default() };
            view.press(key, 25, 10);
            assert_eq!(view.first, first, "{key:?}");
        }
    }

    #[test]
    fn agents_are_sorted_and_filtered_and_equal_ones_stay_in_order() {
        let agents = vec![agent("b", 1.0, Some(0.5)), agent("a", 1.0, None), agent("c", 3.0, Some(9.0))];
        let picture = Picture { agents, ..Picture::default() };
        let names = |view: &View| view.agents(&picture).iter().map(|agent| agent.name.clone()).collect::<String>();
        assert_eq!(names(&View::default()), "cab");
        assert_eq!(names(&View { sort: Sort::Load, ..View::default() }), "cba");
        assert_eq!(names(&View { sort: Sort::Name, ..View::default() }), "abc");
        assert_eq!(names(&View { filter: "B".into(), ..View::default() }), "b");
        assert_eq!(names(&View { filter: "connec".into(), ..View::default() }), "cab");
    }
}
